# SPDX-License-Identifier: Apache-2.0
"""One back-end, from its connection to its end::

    negotiating ──► ready ──► has the memory ──┬──► closed
                                               └──► leaving ──► closed

It is given a memory once.  DPDK ignores a table that looks like the one before, and
goes on with its file; passt ends at one that does not hold its rings.  So another
memory is for another connection, which all back-ends understand.

A back-end that did not stop a ring in time is *leaving*: it is told that nothing comes
any more, and no other one gets the rings until it has closed its end.
"""

import logging
import socket
from collections.abc import Sequence
from typing import Any

from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import ProtocolFeature, Request
from vhostpci_shared.wire import ProtocolError

from ...eventfds import signal
from ..call_thread import RingSignals
from ..interface import MemRegion, RingConf
from .connection import Connection
from .dialogue import BASE, Dialogue
from .messages import Message, memory_table, ring_start
from .negotiation import BackEnd, negotiate

log = logging.getLogger(__name__)


class Session:
    """Speaks to one back-end.

    Any method may raise EOFError (it is gone) or ProtocolError (it broke the protocol,
    or is late); then the caller closes the session.

    Args:
        connection: it never blocks, and is ours to close.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = Connection(connection)
        self._dialogue = Dialogue(self._connection)
        self.back_end: BackEnd | None = None
        """What it can do, once that is known."""
        self.memory: tuple[MemRegion, ...] | None = None
        """The memory that it was given."""
        self._features: int | None = None
        self.stopped: dict[int, int] = {}
        """The rings that it has stopped, with the index that it says."""
        self.leaving = False
        self._conversation = negotiate()

    @property
    def pid(self) -> int:
        """Its process; 0 if it is of another PID namespace."""
        return self._connection.pid

    def fileno(self) -> int:
        return self._connection.fileno()

    @property
    def unsent(self) -> bool:
        """Whether something waits until the socket has room."""
        return self._connection.unsent

    # Negotiation.

    def begin(self) -> None:
        """Ask the first question."""
        self._go_on(next(self._conversation))

    def _go_on(self, message: Message) -> None:
        """Say what comes next, up to the next question."""
        try:
            while message.request not in vu.REPLIES:
                self._dialogue.tell(message)
                message = next(self._conversation)
        except StopIteration as end:
            self._agree(end.value)
            return
        self._dialogue.ask(message, self._answered)

    def _answered(self, payload: bytes) -> None:
        value = vu.U64.parse(payload).value
        try:
            message = self._conversation.send(value)
        except StopIteration as end:
            self._agree(end.value)
            return
        self._go_on(message)

    def _agree(self, back_end: BackEnd) -> None:
        self.back_end = back_end
        self._dialogue.acknowledges = ProtocolFeature.REPLY_ACK in back_end.protocol

    # The rings.

    def set_up(
        self, features: int, regions: Sequence[MemRegion], mtu: int, back_end: BackEnd
    ) -> None:
        """Say what holds for all rings, unless it was said.

        Args:
            features: those of the master's driver.
            regions: the master's memory.
            mtu: that the master was told, or 0.
            back_end: what it can do.
        """
        if features != self._features:
            self._features = features
            said = vu.U64(back_end.acknowledge(features))
            self._dialogue.tell(Message(Request.SET_FEATURES, said))
        if self.memory is None:
            self.memory = tuple(regions)
            for region in regions:
                if region.file is not None:
                    region.file.give()
                    region.file.holders.append(self.pid)
            for message in memory_table(regions):
                self._dialogue.tell(message)
            if mtu and ProtocolFeature.NET_MTU in back_end.protocol:
                self._dialogue.tell(Message(Request.NET_SET_MTU, vu.U64(mtu)))

    def start(
        self, index: int, conf: RingConf, signals: RingSignals, back_end: BackEnd
    ) -> None:
        """Give it a ring."""
        self.stopped.pop(index, None)
        enable = back_end.has_protocol
        for message in ring_start(
            index, conf, kick=signals.kick_fd, call=signals.call_fd, enable=enable
        ):
            self._dialogue.tell(message)
        # Buffers that are there already bring no kick of the driver's.
        signal(signals.kick_fd)

    def stop(self, index: int) -> None:
        """Ask it to stop a ring; `stopped` has the ring when it did."""
        asked = Message(Request.GET_VRING_BASE, vu.VringState(index, 0))

        def take(payload: bytes) -> None:
            state = vu.VringState.parse(payload)
            if state.index != index:
                raise ProtocolError(f"ring {state.index}, and not {index}", code="P067")
            self.stopped[index] = state.num

        self._dialogue.ask(asked, take, BASE)

    # Its course.

    def look(self) -> None:
        """Send and read what can be sent and read now."""
        if not self.leaving:
            self._dialogue.look()
        elif self._connection.peer_closed:
            raise EOFError("it has closed the connection")

    def tick(self) -> None:
        """Count a tick."""
        if not self.leaving:
            self._dialogue.tick()

    def leave(self) -> None:
        """Say that nothing comes any more, and wait for its end."""
        self.leaving = True
        self._connection.end_sending()

    def status(self) -> dict[str, Any]:
        """Return what `vhostpci-guest status -j` says of it."""
        able = self.back_end.status() if self.back_end is not None else {}
        return {"pid": self.pid, "leaving": self.leaving, **able}

    def close(self) -> None:
        """Close the connection: it stops, and unmaps the memory."""
        self._conversation.close()
        self._connection.close()
