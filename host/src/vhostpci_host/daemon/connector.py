# SPDX-License-Identifier: Apache-2.0
"""Connects to a front-end that listens, for as long as it takes.

A QEMU whose chardev has `server=on` listens, and serves one back-end at a time.  Others
that connect wait in its queue: for them it looks as if it said nothing.
"""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

from vhostpci_shared.limits import exhausted

from .. import sockets
from ..interfaces import Loop

QUIET = 5.0
"""Seconds for which a front-end may say nothing before we complain."""
_ABSENT = {errno.ENOENT: "is not there yet", errno.ECONNREFUSED: "has no listener yet"}
"""What is no problem, only early."""


# System calls: connect.
class Connector:
    """Connect to a front-end again and again, and hand the connection over.

    Args:
        path: the socket on which it listens.
        loop: tells the time, and when the front-end speaks.
        take: is called with a connection on which it has spoken, and its process.
        complain: is called with what is wrong.
    """

    def __init__(
        self,
        path: Path,
        loop: Loop,
        take: Callable[[socket.socket, int], None],
        complain: Callable[[str], None],
    ) -> None:
        self.problem = ""
        """Why there is no front-end, for the status; empty if there may be one."""
        self._path = path
        self._loop = loop
        self._take = take
        self._complain = complain
        self._waiting: socket.socket | None = None
        self._since = 0.0

    def check(self) -> None:
        """Connect, unless we are connected and the front-end has yet to speak."""
        if self._waiting is not None:
            self._check_quiet()
            return
        try:
            self._waiting = sockets.connect(self._path)
        except OSError as error:
            if exhausted(error):
                raise
            self._note(error)
            return
        self._since = self._loop.time()
        self._loop.add_reader(self._waiting.fileno(), self._spoken)

    def _note(self, error: OSError) -> None:
        """Keep why we cannot connect; complain, unless it only has to come."""
        assert error.errno is not None, "an error of connect()"
        early = _ABSENT.get(error.errno)
        if early is not None:
            self.problem = f"{self._path} {early}: start the front-end (server=on)"
        elif error.errno == errno.EAGAIN:
            self._say(f"{self._path}: too many back-ends wait for this front-end")
        else:
            why = os.strerror(error.errno)
            self._say(f"cannot connect to the front-end at {self._path}: {why}")

    def _say(self, text: str) -> None:
        self.problem = text
        self._complain(text)

    def _check_quiet(self) -> None:
        """Complain of a front-end that has not spoken for `QUIET` seconds."""
        if self._loop.time() - self._since >= QUIET:
            self._say(
                f"the front-end at {self._path} says nothing: is another back-end "
                "connected to it, or is it no vhost-user socket?"
            )

    def _spoken(self) -> None:
        """Hand the connection over: the front-end has spoken, or closed it."""
        assert self._waiting is not None, "no connection to a front-end"
        connection = self._release(self._waiting)
        try:
            pid = sockets.sender_pid(connection)
        except EOFError:
            connection.close()
            self._say(f"the front-end at {self._path} closed the connection at once")
            return
        self.problem = ""
        self._take(connection, pid)

    def _release(self, connection: socket.socket) -> socket.socket:
        self._loop.remove_reader(connection.fileno())
        self._waiting = None
        return connection

    def close(self) -> None:
        """Connect no more."""
        if self._waiting is not None:
            self._release(self._waiting).close()
