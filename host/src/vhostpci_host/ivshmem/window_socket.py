# SPDX-License-Identifier: Apache-2.0
"""The socket of one window: a slave that connects to it gets the window's file."""

import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from .. import sockets
from ..fds import Notifier
from ..interfaces import Loop, nothing
from ..keeper.shelf import Left
from ..keeper.store import Keep
from ..memory.regions import WindowFile
from . import wire
from .connection import SlaveConnection
from .kept import WindowState
from .linger import Linger
from .peers import window_handshake


class Listening(Protocol):
    """A listening socket that calls back with each connection."""

    def close(self) -> None:
        """Stop listening, and remove the socket's file."""


Listen = Callable[[Path, Callable[[socket.socket], None]], Listening]
"""A function that listens at a path, and calls back with each connection.

It raises `HostError` if it cannot make the socket.
"""


class WindowSocket:
    """Give one window to the slave that connects to its socket, one slave at a time.

    Args:
        number: the window's number, which is the IVPosition of its ivshmem function.
        window: the window's file, of which this object makes its own descriptor.
        path: where to make the socket.
        listen: makes the socket.
        loop: calls back when a connection ends.
        linger: keeps connections open that QEMU would spin on.
        say_once: logs a warning, unless it repeats the last one.
        changed: called when a slave has come or gone.

    Raises:
        HostError: the socket at `path` cannot be made.
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
        changed: Callable[[], None] = nothing,
    ) -> None:
        self.say_once = say_once
        self._changed = changed
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
            # The loop has not yet told us that the old connection ended.  Without this
            # check, a slave that reconnects would be refused because of itself.
            self._connection.close()
        reason = self._refusal(connection)
        if reason is not None:
            self._linger.refuse(connection)
            self.say_once(reason)
            return
        self._connection = SlaveConnection(self, connection, self._loop, self._linger)
        self._connection.start()
        self._connection.send(window_handshake(self._number, self._file, self._vector))
        self._changed()

    def capture(self, keep: Keep) -> WindowState:
        """Return what a successor needs to go on with the window."""
        slave = self._connection
        return WindowState(
            number=self._number,
            vector=keep(self._vector),
            slave=None if slave is None else slave.capture(keep).socket,
        )

    def restore(self, state: WindowState, left: Left) -> None:
        """Go on with the slave of a daemon before us.

        Raises:
            StateError: a descriptor is missing, or of another kind.
        """
        vector = left.eventfd(state.vector)
        self._vector.close()
        self._vector = vector
        if state.slave is not None:
            connection = left.socket(state.slave, listening=False)
            self._connection = SlaveConnection(
                self, connection, self._loop, self._linger
            )
            self._connection.start()

    def disconnect(self, pid: int) -> None:
        """Disconnect this process, if it is connected."""
        if self._connection is not None and self._connection.pid == pid:
            self._connection.close()

    def _refusal(self, connection: socket.socket) -> str | None:
        """Return why this slave cannot have the window; None if it can."""
        who = f"window {self._number} refused to pid {sockets.peer_pid(connection)}"
        if self._connection is not None:
            return f"{who}: pid {self._connection.pid} is connected"
        # QEMU aborts on a BAR whose size is no power of two; a process maps any size.
        if not self._fits_bar and not wire.is_process(connection):
            return (
                f"{who}: its {self._size} bytes are no power of two, as a VM's BAR "
                "has to be; give the master's memory backend such a size, or use a "
                "process (vhostpci-guest run --socket)"
            )
        return None

    def slave_closed(self) -> None:
        """Note that the connection is closed, so another slave may connect."""
        self._connection = None
        self._changed()

    def close(self) -> None:
        """Close the socket and the connection, and our descriptors of the window."""
        # Stop listening first: a slave that reconnects must not get the window again.
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
        self._file.close()
        self._vector.close()
