# SPDX-License-Identifier: Apache-2.0
"""The socket of one window: whoever connects gets the window's file."""

import socket
from collections.abc import Callable
from contextlib import ExitStack

from .. import sockets
from ..fds import Notifier
from ..interfaces import Loop
from ..memory.regions import WindowFile
from ..sockets import Listener
from . import wire
from .connection import SlaveConnection
from .linger import Linger
from .peers import window_handshake


class WindowSocket:
    """The socket of one window: whoever connects has the master's memory.

    Args:
        number: the window's.
        window: its file.
        listen: makes the listening socket that calls what it is given.
        loop: the device's.
        linger: keeps the connections that are refused, or that outlive the window.
        say_once: warns of a peer.
    """

    def __init__(
        self,
        number: int,
        window: WindowFile,
        listen: Callable[[Callable[[socket.socket], None]], Listener],
        loop: Loop,
        linger: Linger,
        say_once: Callable[[str], None],
    ) -> None:
        self.say_once = say_once
        self._number = number
        self._size = window.size
        self._fits_bar = window.fits_bar
        self._loop = loop
        self._linger = linger
        self._connection: SlaveConnection | None = None
        with ExitStack() as undo:
            self._file = undo.enter_context(window.file.copy())
            self._vector = undo.enter_context(Notifier.new())
            self._listener = listen(self._new)
            undo.pop_all()

    @property
    def connected(self) -> bool:
        """Whether somebody has the window."""
        return self._connection is not None

    def _new(self, connection: socket.socket) -> None:
        if self._connection is not None and self._connection.hung_up():
            self._connection.close()
        why = self._why_not(connection)
        if why is not None:
            self._linger.refuse(connection)
            self.say_once(why)
            return
        self._connection = SlaveConnection(self, connection, self._loop, self._linger)
        self._connection.start()
        self._connection.send(window_handshake(self._number, self._file, self._vector))

    def _why_not(self, connection: socket.socket) -> str | None:
        """Return why this peer cannot have the window."""
        who = f"window {self._number} refused to pid {sockets.peer_pid(connection)}"
        if self._connection is not None:
            return f"{who}: pid {self._connection.pid} has it"
        if not self._fits_bar and not wire.is_process(connection):
            return (
                f"{who}: its {self._size} bytes are no power of two, as a VM's BAR "
                "has to be; give the master's memory backend such a size, or use a "
                "process (vhostpci-guest run --socket)"
            )
        return None

    def slave_closed(self) -> None:
        """Nobody has it any more."""
        self._connection = None

    def close(self) -> None:
        """Show the window no longer."""
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
        self._file.close()
        self._vector.close()
