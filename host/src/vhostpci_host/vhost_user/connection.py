# SPDX-License-Identifier: Apache-2.0
"""A front-end's connection: reads its messages, and sends it replies."""

import logging
import socket
from collections.abc import Callable

from vhostpci_shared.vhost_user import Request
from vhostpci_shared.wire import ProtocolError

from .. import sockets
from ..interfaces import Loop
from . import wire
from .message import Message

log = logging.getLogger(__name__)

SILENT = 5.0
"""Seconds after which a front-end that does not go on is said to hang."""
MESSAGES_AT_ONCE = 16
"""Messages of one front-end that are read before the loop serves others."""


class MasterConnection:
    """Read the messages of one front-end, and send it replies (a `MasterPort`).

    Args:
        connection: the socket, which `close` closes.
        pid: the front-end's process, 0 if unknown.
        loop: calls back when there is something to read.
        receive: called with each message.
        closed: called once, when the connection has been closed.
        say_once: logs a warning, unless it repeats the last one.
        returning: whether the process was here lately and did nothing useful.
    """

    def __init__(
        self,
        connection: socket.socket,
        pid: int,
        loop: Loop,
        *,
        receive: Callable[[Message], None],
        closed: Callable[[], None],
        say_once: Callable[[str], None],
        returning: bool = False,
    ) -> None:
        self.pid = pid
        self.returning = returning
        self.dropped = False
        """Whether it was us who ended the connection, for a reason that was logged."""
        self._receive = receive
        self._on_closed = closed
        self._say_once = say_once
        self._loop = loop
        self._connection = connection
        self._reader = wire.MessageReader(connection)
        self._closed = self._paused = False
        self._introduced = self._spoke = False
        # Since when the front-end owes us something: its introduction, or the rest of a
        # message.
        self._owes_since: float | None = loop.time()

    def start(self) -> None:
        """Start to read messages."""
        self._loop.add_reader(self._connection.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            # The rest stays in the socket, and the loop calls back for it.
            for _ in range(MESSAGES_AT_ONCE):
                # `_receive` may have paused or closed the connection.
                message = None if self._busy() else self._reader.read()
                self._note(message)
                if message is None:
                    return
                self._receive(message)
        except EOFError:
            self.close()
        except ProtocolError as error:
            self.drop(str(error))

    def _note(self, message: Message | None) -> None:
        """Note whether the front-end owes us something now."""
        self._spoke |= message is not None or self._reader.in_message
        if message is not None:
            # Every front-end sends this at once, and may then be quiet for weeks.
            self._introduced |= message.header.request == Request.SET_OWNER
            self._owes_since = None if self._introduced else self._owes_since
        elif self._reader.in_message and self._owes_since is None:
            self._owes_since = self._loop.time()

    @property
    def hangs(self) -> str:
        """How the front-end hangs since `SILENT` seconds; empty if it does not."""
        since = self._owes_since
        if self._paused or since is None or self._loop.time() - since < SILENT:
            return ""
        if not self._spoke:
            return "says nothing: is it a slave's QEMU? Its socket is NAME.ivshmem"
        if self._reader.in_message:
            return "has sent half a message, and does not go on"
        return "does not go on: it has not sent SET_OWNER"

    def give_back(self) -> socket.socket | None:
        """End the connection, and leave its socket to the caller if it is silent."""
        if self._spoke or self._closed:
            self.close()
            return None
        ours = self._connection.dup()
        self.close()
        return ours

    def _busy(self) -> bool:
        return self._closed or self._paused

    def send(self, data: bytes) -> None:
        """Send a reply; drop a front-end that does not read its replies."""
        try:
            wire.send(self._connection, data)
        except EOFError:
            self.close()
        except ProtocolError as error:
            self.drop(str(error))

    def pause(self) -> None:
        """Read no further message until `resume`."""
        self._paused = True
        self._loop.remove_reader(self._connection.fileno())

    def resume(self) -> None:
        """Read messages again; a no-op unless the connection is paused."""
        if self._paused and not self._closed:
            self._paused = False
            self.start()

    def hung_up(self) -> bool:
        """Whether the front-end has closed its end, even if that is still unread."""
        return sockets.hung_up(self._connection)

    def drop(self, reason: str) -> None:
        """Log `reason`, and close the connection."""
        self.dropped = True
        self._say_once(f"front-end (pid {self.pid}) dropped: {reason}")
        self.close()

    def close(self) -> None:
        """Close the connection, and call `closed`."""
        # A reply that fails may close the connection while a message of it is being
        # served; tell the device once.
        if self._closed:
            return
        self._closed = True
        # Before close(): a closed socket has no number to remove.
        self._loop.remove_reader(self._connection.fileno())
        self._reader.close()
        self._connection.close()
        self._on_closed()
