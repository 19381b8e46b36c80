# SPDX-License-Identifier: Apache-2.0
"""The slave's connection: its peers, and the master's call notifiers behind them."""

from collections.abc import Sequence
from typing import Protocol

from ..fds import Fd, Notifier
from ..interfaces import Loop
from .doorbells import CallSet, VectorSet
from .peers import Outgoing, Peers, PeersExhausted

UNREAD_MAX = 0.100
"""Seconds to wait for the slave's QEMU to read of a new peer."""
KEPT_MAX = 128
"""Eventfds of old peers that a device which keeps them may have, before it is replaced.

A QEMU may have 1024 descriptors, if nobody gave it more.
"""
RETIRE = 1.0
"""Seconds after which an old peer goes, even if the agent says nothing."""


class SlavePort(Protocol):
    """The ivshmem connection, as the device sees it."""

    @property
    def pid(self) -> int:
        """The slave's QEMU, or the agent itself; 0 if unknown."""
        ...

    @property
    def is_process(self) -> bool:
        """Whether it is an agent itself, not the QEMU of a slave VM."""
        ...

    def send(self, messages: list[Outgoing]) -> None:
        """Send messages, in this order, however long it takes."""

    def unread(self) -> bool:
        """Whether the other side has not read all of them."""
        ...

    def drop(self, reason: str) -> None:
        """Close it for `reason`; the device is told by `slave_gone`."""


class Slave:
    """One ivshmem connection, from its handshake to its end.

    Args:
        port: the connection.
        loop: what calls back.
        window: window 0.
        vectors: the vectors that it is given; they are ours to close.
        doorbell: ours, for the agent to ring.
        unplugged: whether its device will be unplugged one day.  QEMU frees what it
            knows of a peer that is taken back, and again when the device goes; so
            such a device keeps all that it was told of.
    """

    def __init__(
        self,
        port: SlavePort,
        loop: Loop,
        window: Fd,
        vectors: VectorSet,
        doorbell: Notifier,
        *,
        unplugged: bool = False,
    ) -> None:
        self.port = port
        self.vectors = vectors
        self.peers = Peers()
        self._loop = loop
        self._unplugged = unplugged
        self._calls: CallSet | None = None
        self._unread_until: float | None = None
        self._retire: tuple[int, float] | None = None
        port.send(self.peers.handshake(window, vectors.notifiers, doorbell))

    def introduce(self, wanted: Sequence[Notifier | None], generation: int) -> bool:
        """Make these call notifiers the newest peer, unless they are it already.

        `generation` is the last in which the agent was told of the peer before.

        Raises:
            PeersExhausted: the slave's device can have no other.
        """
        if not any(wanted) or (self._calls and self._calls.covers(wanted)):
            return False
        if self._unplugged and self.peers.kept * len(wanted) >= KEPT_MAX:
            raise PeersExhausted(f"it keeps the eventfds of {self.peers.kept} peers")
        self._close_calls()
        self._calls = CallSet(self._loop, wanted)
        self.port.send(self.peers.introduce(self._calls.notifiers))
        self._retire = (generation, self._loop.time())
        return True

    def withdraw(self, generation: int) -> None:
        """The master is gone: its call notifiers are void."""
        self._close_calls()
        self.peers.withdraw()
        self._retire = (generation, self._loop.time())

    def retire(self, reached: int) -> None:
        """Take back old peers when the agent, at generation `reached`, knows better."""
        if self._retire is None:
            return
        generation, since = self._retire
        if reached <= generation and self._loop.time() - since < RETIRE:
            return
        self._retire = None
        if not self._unplugged:
            self.port.send(self.peers.retire())
        self.signal_calls()

    def behind(self) -> bool:
        """Whether to wait until its QEMU has read of the newest peer.

        Until then, a doorbell for that peer rings nowhere.
        """
        if not self.port.unread():
            self._unread_until = None
            return False
        now = self._loop.time()
        if self._unread_until is None:
            self._unread_until = now + UNREAD_MAX
        return now < self._unread_until

    def signal_calls(self) -> None:
        """Interrupt the master: once too often is harmless, a lost one is not."""
        if self._calls is not None:
            self._calls.signal()

    def close(self) -> None:
        """Let go of the notifiers."""
        self._close_calls()
        self.vectors.close()

    def _close_calls(self) -> None:
        if self._calls is not None:
            self._calls.close()
            self._calls = None
