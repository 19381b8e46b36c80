# SPDX-License-Identifier: Apache-2.0
"""The slave of one device: its vectors, its peers, and when to replace a call peer."""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

from ..fds import Fd, Notifier
from ..interfaces import Loop
from ..keeper.shelf import Left
from ..keeper.store import Keep
from .doorbells import CallSet, VectorSet
from .kept import (
    ConnectionState,
    SlaveState,
    capture_calls,
    capture_peers,
    restore_calls,
    restore_peers,
)
from .peers import Outgoing, Peers, PeersExhausted
from .relays import Relays

UNREAD_MAX = 0.100
"""Seconds to wait until the slave's QEMU has read the messages about a new peer."""
KEPT_MAX = 128
"""Eventfds of old peers that a plugged function may keep before it is replaced.

By default, a QEMU process may have 1024 descriptors open.
"""
RETIRE = 1.0
"""Seconds after which an old peer is dropped even if the agent does not answer."""


class SlavePort(Protocol):
    """The ivshmem connection, as `Slave` and `Device` use it."""

    @property
    def pid(self) -> int:
        """The process of the slave's QEMU, or of the agent; 0 if unknown."""
        ...

    @property
    def is_process(self) -> bool:
        """Whether the slave is an agent process, not the QEMU of a slave VM."""
        ...

    @property
    def takes_kicks(self) -> bool:
        """Whether it takes the master's kicks, and sockets, from a call peer."""
        ...

    def send(self, messages: list[Outgoing]) -> None:
        """Send messages in this order; those that must wait are queued."""

    def unread(self) -> bool:
        """Whether the slave has not yet read everything that was sent."""
        ...

    def drop(self, reason: str) -> None:
        """Close the connection for `reason`; `Device.slave_gone` is called later."""


class Slave:
    """The slave of one device, from its handshake until its connection ends.

    Args:
        port: the connection.
        loop: tells the time.
        vectors: the slave's vectors; `close` closes them.
        relays: makes the relays of calls.
        plugged: whether the daemon plugged the ivshmem function, and will unplug it.
    """

    def __init__(
        self,
        port: SlavePort,
        loop: Loop,
        vectors: VectorSet,
        *,
        relays: Relays,
        plugged: bool = False,
    ) -> None:
        self.port = port
        self.vectors = vectors
        self.peers = Peers()
        self._loop = loop
        self._relays = relays
        self._calls_relayed: Counter[int] = Counter()  # by earlier peers
        self._plugged = plugged
        self._calls: CallSet | None = None
        self._unread_until: float | None = None
        # The generation that may still name an old peer, and since when it is old.
        self._outdated: tuple[int, float] | None = None

    def greet(self, window: Fd, doorbell: Notifier) -> None:
        """Send the handshake.

        Args:
            window: the file of window 0.
            doorbell: the daemon's own eventfd, which the agent signals as peer 1.
        """
        notifiers = self.vectors.notifiers
        self.port.send(self.peers.handshake(window, notifiers, doorbell))

    def capture(self, connection: ConnectionState, keep: Keep) -> SlaveState:
        """Return what a successor needs to go on with the slave."""
        return SlaveState(
            connection=connection,
            vectors=tuple(keep(one) for one in self.vectors.notifiers),
            direct=self.vectors.direct,
            peers=capture_peers(self.peers),
            calls=None if self._calls is None else capture_calls(self._calls, keep),
            outdated=None if self._outdated is None else self._outdated[0],
        )

    def restore(
        self,
        state: SlaveState,
        present: Sequence[tuple[str | None, Notifier | None]],
        left: Left,
    ) -> None:
        """Go on with the peers of a daemon before us.

        Args:
            state: what it has left of this slave.
            present: the name and the notifier of each ring's call, then of each kick.
            left: has the descriptors.

        Raises:
            StateError: it does not fit together.
        """
        self.peers = restore_peers(state.peers)
        if state.calls is not None:
            takes_kicks = self.port.takes_kicks
            self._calls = restore_calls(
                *(state.calls, present, left, self._relays), takes_kicks=takes_kicks
            )
        if state.outdated is not None:
            self._outdated = (state.outdated, self._loop.time())

    def doubt(self, generation: int) -> int | None:
        """Replace the call peer: nothing says whether the slave has all of it.

        Args:
            generation: the last one that may name it.

        Returns:
            the peer that is void now.
        """
        peer = self.peers.call_peer
        self.withdraw(generation)
        return peer

    def signal_all(self) -> None:
        """Signal what a daemon before us may have left unsignalled when it ended."""
        # A relay takes a signal before it passes it on.
        self.vectors.signal_all()
        if self._calls is not None:
            self._calls.signal_kicks()
        self.signal_calls()

    @property
    def kick_vectors(self) -> VectorSet | CallSet | None:
        """Where the slave waits for kicks; None as long as no peer has brought them."""
        return self._calls if self.port.takes_kicks else self.vectors

    def has_kick(self, ring: int, kick: Notifier | None) -> bool:
        """Whether the slave waits for a ring's kick itself, and needs no relay."""
        if not self.port.takes_kicks:
            return self.vectors.is_direct(ring)
        return bool(self._calls and kick and kick.is_eventfd)

    def calls_relayed(self, ring: int) -> int:
        """Return how many of a ring's calls were relayed since the slave connected."""
        present = self._calls.relayed(ring) if self._calls else 0
        return self._calls_relayed[ring] + present

    def introduce(
        self,
        calls: Sequence[Notifier | None],
        kicks: Sequence[Notifier | None],
        generation: int,
    ) -> bool:
        """Make a new call peer of these notifiers; return whether one was needed.

        Args:
            calls: one for each ring; None for a ring that does not run.
            kicks: the same; for a slave that takes them.
            generation: the last one that may name the peer before.

        Raises:
            PeersExhausted: the slave's ivshmem function can have no further peer.
        """
        takes_kicks = self.port.takes_kicks
        wanted = (*calls, *kicks) if takes_kicks else calls
        if not any(wanted) or (self._calls and self._calls.covers(wanted)):
            return False
        # A plugged function keeps its old peers (see `retire`), so they are counted.
        if self._plugged and self.peers.kept * len(wanted) >= KEPT_MAX:
            raise PeersExhausted(
                f"it keeps the eventfds of {self.peers.kept} peers", code="H144"
            )
        self._close_calls()
        self._calls = CallSet(self._relays, calls, kicks if takes_kicks else None)
        # The agent rings the old peer until it acts by the next generation, so the
        # slave keeps both for now.
        self.port.send(self.peers.introduce(self._calls.notifiers))
        self._outdated = (generation, self._loop.time())
        return True

    def withdraw(self, generation: int) -> None:
        """Make the call peer void, because the front-end has disconnected."""
        self._close_calls()
        self.peers.withdraw()
        self._outdated = (generation, self._loop.time())

    @property
    def retiring(self) -> bool:
        """Whether there are old peers that `retire` will drop."""
        return self._outdated is not None

    def retire(self, reached: int) -> None:
        """Drop old peers once the agent has answered a generation without them.

        Args:
            reached: the generation that the agent has answered.
        """
        if self._outdated is None:
            return
        generation, since = self._outdated
        if reached <= generation and self._loop.time() - since < RETIRE:
            return
        self._outdated = None
        # QEMU frees the array of a peer when the peer is dropped, and frees it again
        # when the ivshmem function goes: a function that will be unplugged has to keep
        # all its peers.
        if not self._plugged:
            self.port.send(self.peers.retire())
        # Until now the agent may have rung the old peer: the master's driver, which has
        # new call eventfds, has missed those interrupts.
        self.signal_calls()

    def behind(self) -> bool:
        """Whether to wait because the slave's QEMU has unread messages.

        QEMU ignores a doorbell for a peer that it has not read about.
        """
        if not self.port.unread():
            self._unread_until = None
            return False
        # The wait is bounded: a QEMU that reads nothing must not keep the daemon from
        # publishing.
        now = self._loop.time()
        if self._unread_until is None:
            self._unread_until = now + UNREAD_MAX
        return now < self._unread_until

    def signal_calls(self) -> None:
        """Interrupt the master for every ring of the present call peer."""
        # Callers signal once too often on purpose: a spurious interrupt is harmless, a
        # lost one hangs the queue.
        if self._calls is not None:
            self._calls.signal()

    def close(self) -> None:
        """Close the notifiers."""
        self._close_calls()
        self.vectors.close()

    def _close_calls(self) -> None:
        if self._calls is None:
            return
        self._calls.close()  # which may relay one more
        for ring in range(len(self.vectors.notifiers) - 1):
            self._calls_relayed[ring] += self._calls.relayed(ring)
        self._calls = None
