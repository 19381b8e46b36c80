# SPDX-License-Identifier: Apache-2.0
"""Listening sockets that systemd has made for us, before the daemon started.

Theory of operation.  A front-end that connects to such a socket waits until the daemon
is there, so masters and daemon may start in any order, and none needs `reconnect=`.
systemd gives the sockets to each daemon again.  Which one is for what says the path
that it is bound to: the same path that the daemon would listen at.

They are checked like any input.  A socket's default mode with systemd is 0666, which
would let every user be the master.  And the path may name another socket by now: of
a daemon before us, which has found that its path was taken, and has listened again.
"""

import logging
import os
import socket
import stat
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from .. import sockets
from ..errors import HostError
from ..fds import Fd, identity
from .listeners import LeftSocket, Place

log = logging.getLogger(__name__)


class GivenSockets:
    """The sockets that no device has taken yet.

    Args:
        descriptors: all that systemd has given us; ours from here on.
    """

    def __init__(self, descriptors: Iterable[Fd] = ()) -> None:
        self._sockets: dict[Path, socket.socket] = {}
        for fd in descriptors:
            with fd:
                self._adopt(fd)

    def _adopt(self, fd: Fd) -> None:
        """Keep a listening socket that has a path; leave any other descriptor alone."""
        number = fd.fileno()
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            log.warning("systemd gives us a descriptor that is no socket: not used")
            return
        # System calls: getsockopt, socket(AF_UNIX).
        found = socket.socket(fileno=os.dup(number))
        kind = found.family, found.type, sockets.is_listening(found)
        name = found.getsockname()
        fits = kind == (socket.AF_UNIX, socket.SOCK_STREAM, True)
        if not fits or not isinstance(name, str) or not name.startswith("/"):
            log.warning(
                "systemd gives us a socket at %r that is no listening Unix stream "
                "socket with a path: not used; see ListenStream= of its unit",
                name,
            )
            found.close()
        elif Path(name) in self._sockets:
            log.warning("systemd gives us two sockets at %s: one is not used", name)
            found.close()
        else:
            found.setblocking(False)
            self._sockets[Path(name)] = found

    def prefer(self, left: LeftSocket | None, place: Place) -> LeftSocket | None:
        """Return the socket for a place, which is the caller's; None without one.

        Args:
            left: what a daemon before us has left; it is the same one, or newer.
            place: of the socket.

        Raises:
            HostError: others may connect to it than to a socket of ours.
        """
        server = self._sockets.pop(place.path, None)
        if server is None:
            return left
        if left is not None:
            same = identity(server) == identity(left.server)
            server.close()
            return replace(left, given=same)
        return self._checked(place, server)

    def _checked(self, place: Place, server: socket.socket) -> LeftSocket | None:
        inode = sockets.inode(place.path)
        if inode is None or not sockets.leads_to(place.path, server):
            log.warning(
                "%s: no longer leads to the socket that systemd has made there: its "
                "socket unit must be restarted",
                place.path,
            )
            server.close()
            return None
        try:
            _check_access(place)
        except HostError:
            server.close()
            raise
        return LeftSocket(server, inode, given=True)

    def finish_start(self) -> None:
        """Remove the sockets that no device has taken."""
        # A front-end that connects to one would wait without end, and its VM with it.
        while self._sockets:
            path, server = self._sockets.popitem()
            if sockets.leads_to(path, server):
                log.warning(
                    "%s: systemd listens there, and no device that is served has this "
                    "socket: it is removed; disable its socket unit, or add the device",
                    path,
                )
                path.unlink(missing_ok=True)
            sockets.turn_away(server)
            server.close()

    def close(self) -> None:
        """Close all."""
        while self._sockets:
            self._sockets.popitem()[1].close()


def _check_access(place: Place) -> None:
    """Check that no other users may connect than to a socket of ours.

    Raises:
        HostError: they may.
    """
    # System calls: lstat.
    info = os.lstat(place.path)
    mode = stat.S_IMODE(info.st_mode)
    if info.st_uid not in (0, os.geteuid()):
        raise HostError(
            f"{place.path}, which systemd has made, belongs to uid {info.st_uid}: set "
            "SocketUser= of its unit to the daemon's user",
            code="H082",
        )
    if mode & ~place.mode:
        raise HostError(
            f"{place.path}, which systemd has made, has mode {mode:04o}, and others "
            f"may connect than with {place.mode:04o}: set SocketMode={place.mode:04o} "
            "in its unit, or socket-mode of the device",
            code="H083",
        )
    group = os.getegid() if place.group is None else place.group
    if mode & stat.S_IRWXG and info.st_gid != group:
        raise HostError(
            f"{place.path}, which systemd has made, belongs to group {info.st_gid}, "
            f"and not to {group}: set SocketGroup= of its unit as socket-group of the "
            "device",
            code="H084",
        )
