# SPDX-License-Identifier: Apache-2.0
"""The socket of one window: whoever connects gets the window's file."""

import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from .. import sockets
from ..fds import Notifier
from ..interfaces import Loop
from ..memory.regions import WindowFile
from . import wire
from .connection import SlaveConnection
from .linger import Linger
from .peers import window_handshake


class Listening(Protocol):
    """A listening socket that calls back with each connection."""

    def close(self) -> None:
        """Stop listening, and remove the socket."""


Listen = Callable[[Path, Callable[[socket.socket], None]], Listening]
"""Listens at a path, and calls back with each connection.

Raises `HostError` if there cannot be a socket.
"""


class WindowSocket:
    """The socket of one window: a slave that connects can read and write the memory.

    Args:
        number: the window's, and the IVPosition of the device that shows it.
        window: its file; it stays the caller's.
        path: of the socket.
        listen: makes the socket.
        loop: calls it back.
        linger: keeps connections open that QEMU would spin on.
        say_once: warns of a peer, but not each time that it tries again.

    Raises:
        HostError: there cannot be a socket at `path`.
    """

    def __init__(
        self,
        number: int,
        window: WindowFile,
        path: Path,
        listen: Listen,
        *,
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
            self._listener = listen(path, self._new)
            undo.pop_all()

    @property
    def connected(self) -> bool:
        """Whether a slave has the window."""
        return self._connection is not None

    def _new(self, connection: socket.socket) -> None:
        if self._connection is not None and self._connection.hung_up():
            # Its end has not been read yet: this is the same slave, back again.
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
        """Return why this peer cannot have the window; None if it can."""
        who = f"window {self._number} refused to pid {sockets.peer_pid(connection)}"
        if self._connection is not None:
            return f"{who}: pid {self._connection.pid} has it"
        # QEMU aborts on a BAR whose size is no power of two.
        if not self._fits_bar and not wire.is_process(connection):
            return (
                f"{who}: its {self._size} bytes are no power of two, as a VM's BAR "
                "has to be; give the master's memory backend such a size, or use a "
                "process (vhostpci-guest run --socket)"
            )
        return None

    def slave_closed(self) -> None:
        """Note that the connection is closed; another slave may have the window."""
        self._connection = None

    def close(self) -> None:
        """Close the socket and the connection: the window is shown no more."""
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
        self._file.close()
        self._vector.close()
