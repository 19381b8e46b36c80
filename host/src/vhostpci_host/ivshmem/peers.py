# SPDX-License-Identifier: Apache-2.0
"""Whose doorbell is whose, on one ivshmem connection.

The slave's QEMU is peer 0 and gets all its vectors during the handshake, since it
takes none later.  The daemon is peer 1, with one doorbell.  From 2 on, each set of
the master's call eventfds is a peer, vector i for ring i.

An ID is never used twice: QEMU frees a peer's array once more when an ID comes back
(`close_peer_eventfds` in hw/misc/ivshmem.c, from 2.5 until at least 10.2).  Nor is a
peer taken back twice.  65,534 sets are enough for a connection's life.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vhostpci_shared import ivshmem
from vhostpci_shared import metadata as md

from ..fds import Fd, Notifier


class PeersExhausted(Exception):
    """This connection can have no further peer; only a new one can."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One ivshmem message, and the descriptor beside it, which is not ours."""

    message: int
    fd: Fd | None = None


class Peers:
    """The IDs that one connection has seen, and what to send next."""

    def __init__(self) -> None:
        self.call_peer: int | None = None
        """The peer that has the master's present call eventfds."""
        self.used = 0
        """How many sets were introduced so far."""
        self._old: list[int] = []
        """Those that are void, and were not taken back."""

    def handshake(
        self, memory: Fd, vectors: Sequence[Notifier], doorbell: Notifier
    ) -> list[Outgoing]:
        """Return all that QEMU needs to become a device, to be sent in one go."""
        return [
            Outgoing(ivshmem.VERSION),
            Outgoing(md.SLAVE_ID),
            Outgoing(ivshmem.SHARED_MEMORY, memory),
            Outgoing(md.DAEMON_PEER, doorbell),
            *(Outgoing(md.SLAVE_ID, vector) for vector in vectors),
        ]

    def introduce(self, calls: Iterable[Notifier]) -> list[Outgoing]:
        """Give a new set of call eventfds to the slave, under a new ID.

        The peer before it stays until `retire`: the slave may still ring it.

        Raises:
            PeersExhausted: there is no ID left.
        """
        peer = md.FIRST_CALL_PEER + self.used
        if peer > ivshmem.MAX_ID:
            raise PeersExhausted(f"all {self.used} call peers were used")
        self.withdraw()
        self.used += 1
        self.call_peer = peer
        return [Outgoing(peer, call) for call in calls]

    def withdraw(self) -> None:
        """The present set is void; `retire` takes it back."""
        if self.call_peer is not None:
            self._old.append(self.call_peer)
            self.call_peer = None

    @property
    def kept(self) -> int:
        """How many void sets the slave still has."""
        return len(self._old)

    def retire(self) -> list[Outgoing]:
        """Take back the peers that nobody rings any more, each once."""
        old, self._old = self._old, []
        return [Outgoing(peer) for peer in old]


def window_handshake(number: int, memory: Fd, vector: Notifier) -> list[Outgoing]:
    """Return all that makes a device of a window with the master's memory.

    It takes no doorbells, and its vector is never signalled: QEMU under KVM ends
    with a device that has a vector without an eventfd.
    """
    return [
        Outgoing(ivshmem.VERSION),
        Outgoing(number),
        Outgoing(ivshmem.SHARED_MEMORY, memory),
        Outgoing(number, vector),
    ]


def refusal() -> list[Outgoing]:
    """Return what a slave is told that is not wanted, as there is one already."""
    return [Outgoing(ivshmem.REFUSED)]
