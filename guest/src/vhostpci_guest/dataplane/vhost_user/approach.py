# SPDX-License-Identifier: Apache-2.0
"""How the agent and a back-end meet: one listens on a socket, the other connects."""

import errno
import logging
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ...errors import Unusable

log = logging.getLogger(__name__)

MODE = 0o660
"""Who may connect gets the master's memory: our user, its group, and root."""
RETRY = 5
"""Ticks (1 s) between two attempts to connect."""
_BACKLOG = 16
_PATH_MAX = 107
"""Bytes in the path of a Unix socket (sun_path, without its last zero)."""


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

    Raises:
        Unusable: another process listens there, or it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem = ""
        _clear(path)
        self._socket = _listen(path)
        self._inode = _inode(path)

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
        lost = _inode(self.path) != self._inode
        if lost and not self.problem:
            log.warning(
                "%s is not our socket any more, so no back-end comes by it: start the "
                "agent again",
                self.path,
            )
        self.problem = "another file is at that path" if lost else ""

    def close(self) -> None:
        if _inode(self.path) == self._inode:
            with suppress(OSError):  # its directory may have become another user's
                self.path.unlink()
        self._socket.close()


class Connector:
    """An `Approach`: a socket of the back-end's, that we connect to.

    Args:
        path: of the socket.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem = ""
        self._wait = 0

    def fileno(self) -> None:
        return None

    def take(self) -> socket.socket | None:
        if self._wait:
            return None
        self._wait = RETRY
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            connection.connect(os.fspath(self.path))
        except OSError as error:
            connection.close()
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


def make_directory(path: Path, owner: tuple[int, int] | None) -> None:
    """Make the directory of the sockets, if it is not there, for the agent's user.

    Args:
        path: its own parent must exist.
        owner: user and group; None: who we are.

    Raises:
        Unusable: it cannot be made.
    """
    try:
        path.mkdir(mode=0o755)
        if owner is not None:
            os.chown(path, *owner)
    except FileExistsError:
        return  # whoever made it decides who may write there
    except OSError as error:
        raise Unusable(f"cannot make the directory {path}: {error.strerror}") from None


def _clear(path: Path) -> None:
    """Remove a socket that no process listens on.

    Raises:
        Unusable: a process listens on it, or something else is there.
    """
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise Unusable(f"{path} is there and is no socket: move it away")
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unusable(f"cannot look at {path}: {error.strerror}") from None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            # What cannot be removed is reported by `bind`.
            with suppress(OSError):
                path.unlink()
            return
        except BlockingIOError:
            pass  # its queue is full, so a process listens
        except OSError as error:
            raise Unusable(f"cannot look at {path}: {error.strerror}") from None
    raise Unusable(
        f"another process listens on {path}: end it, give each device its own socket "
        "by {name} in the path, or write server=off to connect to that process"
    )


def _listen(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > _PATH_MAX:
        raise Unusable(f"{path}: the path of a socket has at most {_PATH_MAX} bytes")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.setblocking(False)
        os.fchmod(server.fileno(), MODE)  # bind() makes the file with this mode
        server.bind(os.fspath(path))
        os.chmod(path, MODE)
        server.listen(_BACKLOG)
    except OSError as error:
        server.close()
        raise Unusable(
            f"cannot make the socket {path}: {error.strerror}; its directory must "
            f"exist, and the agent's user (number {os.geteuid()}) may write there"
        ) from None
    return server


def _inode(path: Path) -> tuple[int, int] | None:
    """Return which file is at `path`; None if there is none that we can see."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
