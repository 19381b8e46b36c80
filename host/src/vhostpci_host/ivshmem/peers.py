# SPDX-License-Identifier: Apache-2.0
"""The peers of one ivshmem connection: which ID stands for which eventfds.

- Peer 0 is the slave's device, with all its vectors.
- Peer 1 is the daemon, with one doorbell.
- Each peer from 2 on is one set of the master's call eventfds: vector i is ring i.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vhostpci_shared import ivshmem
from vhostpci_shared import metadata as md
from vhostpci_shared.errors import Coded

from ..fds import Fd, Notifier


class PeersExhausted(Coded):
    """The connection can take no further peer; only a new connection can."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One ivshmem message, and the descriptor beside it, which the caller keeps."""

    message: int
    fd: Fd | None = None


class Peers:
    """Choose the peer IDs of one connection, and make the messages about them."""

    def __init__(self) -> None:
        self.call_peer: int | None = None
        """The peer that has the master's present call eventfds."""
        self.used = 0
        """How many call peers were introduced; it never decreases."""
        self.old: list[int] = []
        """Call peers that are void, and that the slave has not been told to drop."""

    def handshake(
        self, memory: Fd, vectors: Sequence[Notifier], doorbell: Notifier
    ) -> list[Outgoing]:
        """Return the messages that make QEMU's device; send all of them at once."""
        # QEMU reads these messages in realize(), one after the other, with its whole VM
        # standing still, until it has the shared memory.  If the connection ends before
        # that, QEMU never stops reading from it.
        return [
            Outgoing(ivshmem.VERSION),
            Outgoing(md.SLAVE_ID),
            Outgoing(ivshmem.SHARED_MEMORY, memory),
            # Before the vectors: once the agent can be interrupted, it can answer.
            Outgoing(md.DAEMON_PEER, doorbell),
            # All vectors now: QEMU with KVM aborts when the guest unmasks a vector that
            # has no eventfd.  The k-th message is vector k, as none has a number.
            *(Outgoing(md.SLAVE_ID, vector) for vector in vectors),
        ]

    def introduce(self, calls: Iterable[Notifier]) -> list[Outgoing]:
        """Return the messages that give the slave a new set of call eventfds.

        The peer before it stays until `retire`: the agent may still ring it.

        Raises:
            PeersExhausted: every ID has been used.
        """
        # Count up, and never use an ID again: when an ID comes back, QEMU frees the
        # old peer's array a second time (close_peer_eventfds in hw/misc/ivshmem.c, from
        # 2.5 until at least 10.2).  65,534 sets are enough for one connection.
        peer = md.FIRST_CALL_PEER + self.used
        if peer > ivshmem.MAX_ID:
            raise PeersExhausted(
                f"all {self.used} IDs of call peers have been used", code="H143"
            )
        self.withdraw()
        self.used += 1
        self.call_peer = peer
        return [Outgoing(peer, call) for call in calls]

    def withdraw(self) -> None:
        """Mark the present call peer as void; `retire` tells the slave later."""
        if self.call_peer is not None:
            self.old.append(self.call_peer)
            self.call_peer = None

    @property
    def kept(self) -> int:
        """How many void call peers the slave still has."""
        return len(self.old)

    def retire(self) -> list[Outgoing]:
        """Return the messages that tell the slave to drop its void call peers."""
        # Empty the list first: to drop a peer twice is a double free in QEMU, too.
        old, self.old = self.old, []
        return [Outgoing(peer) for peer in old]


def window_handshake(number: int, memory: Fd, vector: Notifier) -> list[Outgoing]:
    """Return the messages that make a device of a window with the master's memory."""
    return [
        Outgoing(ivshmem.VERSION),
        Outgoing(number),
        Outgoing(ivshmem.SHARED_MEMORY, memory),
        # This eventfd is never signalled.  The device has one vector at least, and QEMU
        # with KVM aborts on a vector without an eventfd.
        Outgoing(number, vector),
    ]


def refusal(message: int = ivshmem.REFUSED) -> list[Outgoing]:
    """Return the messages for a slave that is refused."""
    # A version that QEMU does not know ends the device's realize() with an error.
    return [Outgoing(message)]
