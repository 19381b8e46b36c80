# SPDX-License-Identifier: Apache-2.0
"""Listening sockets that call back with each connection."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vhostpci_shared.errors import Said
from vhostpci_shared.limits import exhausted, no_descriptors, reason

from .. import sockets
from ..device.kept import ListenerState
from ..errors import HostError
from ..interfaces import Json, Loop
from ..keeper.store import Keep

ACCEPT_PAUSE = 1.0
"""Seconds to accept nothing when there are no descriptors left."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a socket is, and who may connect to it."""

    path: Path
    mode: int
    group: int | None


@dataclass(frozen=True, slots=True)
class LeftSocket:
    """A listening socket that a daemon before us has left, or systemd has made."""

    server: socket.socket
    inode: tuple[int, int]
    """Which file its path named."""
    given: bool = False
    """Whether systemd has made it, and goes on listening when we have closed it."""


class Listener:
    """Accepts connections until it is closed.

    Args:
        server: the listening socket, ours from here on.
        loop: what tells of a connection.
        take: is called with each.
        complain: is called with why there can be none.
        start: whether to accept connections at once; else they wait for `start`.
    """

    def __init__(
        self,
        server: socket.socket,
        loop: Loop,
        take: Callable[[socket.socket], None],
        complain: Callable[[str], None],
        *,
        start: bool = True,
    ) -> None:
        self._server = server
        self._loop = loop
        self._take = take
        self._complain = complain
        if start:
            self.start()

    def start(self) -> None:
        """Accept connections from now on; those that wait come first."""
        self._loop.add_reader(self._server.fileno(), self._ready)

    def _ready(self) -> None:
        try:
            connection = sockets.accept(self._server)
        except OSError as error:
            self._pause(error)
            return
        if connection is not None:
            self._take(connection)

    def _pause(self, error: OSError) -> None:
        """Accept nothing for ACCEPT_PAUSE seconds, after an accept() that failed."""
        # Without descriptors the connection stays in the queue, and the socket
        # readable: the loop would call `_ready` again and again.
        self._complain(f"cannot accept a connection: {reason(error)}")
        self._loop.remove_reader(self._server.fileno())
        self._loop.call_later(ACCEPT_PAUSE, self._unpause)

    def _unpause(self) -> None:
        # It may have been closed meanwhile.
        if self._server.fileno() >= 0:
            self.start()

    def close(self) -> None:
        """Accept no more."""
        self._loop.remove_reader(self._server.fileno())
        self._server.close()


# System calls: accept4, listen, unlink.
class PathListener:
    """Listens at a path, also after another process has taken the path away.

    A QEMU whose chardev has `server=on` unlinks our socket without a word, puts its own
    there, and removes that when it ends.  Without a look at the path, the daemon would
    listen on a socket that nothing can reach, and not notice it.

    Args:
        place: the path, with the mode and the group of its socket.
        loop: what tells of a connection.
        take: is called with each.
        complain: is called with why there can be none, and with who took the path.
        start: whether to accept connections at once; else they wait for `start`.
        left: the socket of a daemon before us; ours from here on.

    Raises:
        HostError: the socket cannot be made.
    """

    def __init__(
        self,
        place: Place,
        loop: Loop,
        take: Callable[[socket.socket], None],
        complain: Callable[[str], None],
        *,
        start: bool = True,
        left: LeftSocket | None = None,
    ) -> None:
        self._started = start
        self._place = place
        self._loop = loop
        self._take = take
        self._complain = complain
        self.closed = False
        self.lost = False
        """Whether another process has taken the path, and we cannot listen there."""
        self._given = left is not None and left.given
        if left is None:
            self._adopt(sockets.listen(place.path, place.mode, place.group))
        else:
            self._adopt(left.server, left.inode)

    def _adopt(
        self, server: socket.socket, inode: tuple[int, int] | None = None
    ) -> None:
        # The number stays this file's while `server` is open: Linux keeps the inode.
        self._inode = inode or sockets.inode(self._place.path)
        self.server = server
        """The listening socket."""
        self._listener = Listener(
            server, self._loop, self._take, self._complain, start=self._started
        )

    def describe(self) -> Json:
        """Return which file our socket is, for the status."""
        device, inode = self._inode or (0, 0)
        return {"path": str(self._place.path), "device": device, "inode": inode}

    def capture(self, keep: Keep) -> ListenerState:
        """Return what a successor needs to listen with the same socket."""
        device, inode = self._inode or (0, 0)
        path = str(self._place.path)
        return ListenerState(keep(self.server), path, device, inode)

    def start(self) -> None:
        """Accept connections from now on; those that wait come first."""
        self._started = True
        self._listener.start()

    def check(self) -> None:
        """Listen again if our socket is no longer at the path."""
        if self.closed:
            return
        path, found = self._place.path, sockets.inode(self._place.path)
        self.lost = found is None or found != self._inode
        if not self.lost:
            return
        if found is None:
            text = f"{path} was removed by another process: listening there again"
        else:
            text = (
                f"{path} was replaced by {sockets.who_listens(path)}: listening there "
                "again. A QEMU needs server=off in its chardev (libvirt: mode='client')"
            )
        self._complain(text)
        try:
            place = self._place
            server = sockets.listen_again(place.path, place.mode, place.group)
        except HostError as error:
            self._complain(Said(f"cannot listen at {path} again: {error}", error.code))
            return
        except OSError as error:
            # Not up to the loop, which would end a connection to have a descriptor.
            if not exhausted(error):
                raise
            why = no_descriptors(error)
            self._complain(Said(f"cannot listen at {path} again: {why}", why.code))
            return
        if self._given:
            sockets.turn_away(self.server)
        self._listener.close()
        self._adopt(server)
        self.lost = self._given = False

    def close(self) -> None:
        """Accept no more, and remove the socket if it is still ours."""
        self.closed = True
        if sockets.inode(self._place.path) == self._inode:
            self._remove()
        if self._given:
            # They would wait without end, since systemd still has the socket open.
            sockets.turn_away(self.server)
        self._listener.close()

    def _remove(self) -> None:
        path = self._place.path
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            # On a disk that is read-only now, for instance.  The socket itself must be
            # closed all the same: a front-end could still connect, and wait.
            self._complain(
                f"cannot remove {path}: {error.strerror}; the next daemon with this "
                "name replaces it"
            )
