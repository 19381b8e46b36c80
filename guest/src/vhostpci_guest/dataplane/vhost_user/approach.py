# SPDX-License-Identifier: Apache-2.0
"""How the agent and a back-end meet: one listens on a socket, the other connects."""

import errno
import logging
import os
import socket
from pathlib import Path
from typing import Protocol

from .sockets import Sockets

log = logging.getLogger(__name__)

RETRY = 5
"""Ticks (1 s) between two attempts to connect."""


class Approach(Protocol):
    """Brings the connections of back-ends."""

    path: Path

    @property
    def problem(self) -> str:
        """Why there is no back-end, as the kernel says it; else empty."""

    def fileno(self) -> int | None:
        """Return a descriptor that is readable when a back-end comes, or None."""

    def take(self) -> socket.socket | None:
        """Return the connection of a back-end, which never blocks; None: no new one.

        Raises:
            Unusable: no connection will ever come.
            OSError: there is no descriptor for it.
        """

    def tick(self) -> None:
        """Count a tick."""

    def close(self) -> None:
        """Let no back-end come any more."""


class Listener:
    """An `Approach`: a socket that we make, and that back-ends connect to.

    Args:
        path: of the socket.
        name: the device's.
        sockets: make it.

    Raises:
        Unusable: another process listens there, or it cannot be made.
    """

    def __init__(self, path: Path, name: str, sockets: Sockets) -> None:
        self.path = path
        self.problem = ""
        self._name = name
        self._sockets = sockets
        self._socket = sockets.listen(name)
        self._inode = _inode(path)
        """None if its directory is closed to us: then nothing is known of it."""

    def fileno(self) -> int:
        return self._socket.fileno()

    def take(self) -> socket.socket | None:
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        connection.setblocking(False)
        return connection

    def tick(self) -> None:
        """Say so, once, if the path does not lead to us any more."""
        # Not made again: who may write there has the right to end this device.
        lost = self._inode is not None and _inode(self.path) != self._inode
        if lost and not self.problem:
            log.warning(
                "%s is not our socket any more, so no back-end comes by it: start the "
                "agent again",
                self.path,
            )
        self.problem = "another file is at that path" if lost else ""

    def close(self) -> None:
        # First, as only a socket without a listener is removed.
        self._socket.close()
        self._sockets.remove(self._name)


class Connector:
    """An `Approach`: a socket of the back-end's, that we connect to.

    Args:
        path: of the socket.
        name: the device's.
        sockets: connect to it.
    """

    def __init__(self, path: Path, name: str, sockets: Sockets) -> None:
        self.path = path
        self.problem = ""
        self._name = name
        self._sockets = sockets
        self._wait = 0

    def fileno(self) -> None:
        return None

    def take(self) -> socket.socket | None:
        if self._wait:
            return None
        self._wait = RETRY
        try:
            connection = self._sockets.connect(self._name)
        except OSError as error:
            # "Resource temporarily unavailable" says nothing to a user.
            busy = error.errno == errno.EAGAIN
            self.problem = "too many wait for it" if busy else error.strerror or ""
            return None
        self.problem = ""
        return connection

    def tick(self) -> None:
        self._wait = max(self._wait - 1, 0)

    def close(self) -> None:
        """Do nothing: the socket is the back-end's."""


def _inode(path: Path) -> tuple[int, int] | None:
    """Return which file is at `path`; None if there is none that we can see."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
