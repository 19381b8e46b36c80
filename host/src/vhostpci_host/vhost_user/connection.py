# SPDX-License-Identifier: Apache-2.0
"""A front-end's connection: bytes of a socket in, messages out."""

import logging
import socket
from collections.abc import Callable

from vhostpci_shared.wire import ProtocolError

from .. import sockets
from ..interfaces import Loop
from . import wire
from .message import Message

log = logging.getLogger(__name__)

MESSAGES_AT_ONCE = 16
"""Messages of one front-end before others have their turn."""


class MasterConnection:
    """A front-end's connection (a `MasterPort`).

    Args:
        connection: the socket; closed with the connection.
        loop: calls back when there is something to read.
        receive: takes each message.
        closed: called once, when the connection has been closed.
        say_once: warns of a peer, but not each time that it tries again.
    """

    def __init__(
        self,
        connection: socket.socket,
        loop: Loop,
        *,
        receive: Callable[[Message], None],
        closed: Callable[[], None],
        say_once: Callable[[str], None],
    ) -> None:
        self.pid = sockets.peer_pid(connection)
        self._receive = receive
        self._on_closed = closed
        self._say_once = say_once
        self._loop = loop
        self._connection = connection
        self._reader = wire.MessageReader(connection)
        self._closed = self._paused = False

    def start(self) -> None:
        """Begin to read."""
        self._loop.add_reader(self._connection.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            for _ in range(MESSAGES_AT_ONCE):
                message = None if self._busy() else self._reader.read()
                if message is None:
                    return
                self._receive(message)
        except EOFError:
            self.close()
        except ProtocolError as error:
            self.drop(str(error))

    def _busy(self) -> bool:
        return self._closed or self._paused

    def send(self, data: bytes) -> None:
        """Send a reply; one who does not read it is dropped."""
        try:
            wire.send(self._connection, data)
        except EOFError:
            self.close()
        except ProtocolError as error:
            self.drop(str(error))

    def pause(self) -> None:
        """Read no message until `resume`."""
        self._paused = True
        self._loop.remove_reader(self._connection.fileno())

    def resume(self) -> None:
        """Read messages again."""
        if self._paused and not self._closed:
            self._paused = False
            self.start()

    def hung_up(self) -> bool:
        """Whether the front-end is gone, though we have not read so yet."""
        return sockets.hung_up(self._connection)

    def drop(self, reason: str) -> None:
        """Close the connection for what the front-end did."""
        self._say_once(f"front-end (pid {self.pid}) dropped: {reason}")
        self.close()

    def close(self) -> None:
        """Close the connection; the device learns of it."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._connection.fileno())
        self._reader.close()
        self._connection.close()
        self._on_closed()
