# SPDX-License-Identifier: Apache-2.0
"""The sockets at which one device listens, and those that earlier daemons have left."""

import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from ..device.kept import ListenerState
from ..errors import InUse
from ..interfaces import Json, Loop
from ..keeper.store import DescriptorStore, Keep
from .given import GivenSockets
from .left_behind import unnamed_socket
from .listeners import LeftSocket, PathListener, Place


class Listening:
    """Makes the listening sockets of a device, and looks after their paths.

    Args:
        loop: tells of connections.
        given: the sockets that systemd has made.
        keeper: has what a daemon before us has left; None without a keeper.
        warn: is called with what is wrong at a path.
    """

    def __init__(
        self,
        loop: Loop,
        given: GivenSockets,
        keeper: DescriptorStore | None,
        warn: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._given = given
        self._keeper = keeper
        self._warn = warn
        self._listeners: list[PathListener] = []
        self._left: dict[Path, LeftSocket] = {}

    def take_over(self, left: Mapping[Path, LeftSocket]) -> None:
        """Use these sockets of a daemon before us; `close_left` ends the others."""
        self._left = dict(left)

    def close_left(self) -> None:
        """Close the sockets that were taken over, and are not used."""
        while self._left:
            self._left.popitem()[1].server.close()

    def listen(
        self,
        place: Place,
        take: Callable[[socket.socket], None],
        stack: ExitStack | None = None,
        *,
        start: bool = True,
    ) -> PathListener:
        """Make a socket, and look at its path from time to time.

        Args:
            place: of the socket.
            take: is called with each connection to it.
            stack: closes it, if it is given.
            start: whether to accept connections at once.

        Raises:
            HostError: there cannot be a socket.
        """
        left = self._given.prefer(self._left.pop(place.path, None), place)
        try:
            listener = PathListener(
                place, self._loop, take, self._warn, start=start, left=left
            )
        except InUse:
            left = self._unnamed_socket(place.path)
            if left is None:
                raise
            listener = PathListener(
                place, self._loop, take, self._warn, start=start, left=left
            )
        self._listeners.append(listener)
        if stack is not None:
            stack.callback(listener.close)
        return listener

    def _unnamed_socket(self, path: Path) -> LeftSocket | None:
        """Return a socket that a daemon before us had made, and in no state yet."""
        keeper = self._keeper
        return None if keeper is None else unnamed_socket(keeper.left, path)

    def check(self, *, names: bool) -> None:
        """Listen again where another process took the path of a socket.

        Args:
            names: whether a name in the sockets' directory may have changed.
        """
        if names:
            self._listeners = [one for one in self._listeners if not one.closed]
        for listener in self._listeners:
            if names or listener.lost:
                listener.check()

    def describe(self) -> list[Json]:
        """Return which files our sockets are, for the status."""
        return [one.describe() for one in self._listeners if not one.closed]

    def capture(self, keep: Keep) -> tuple[ListenerState, ...]:
        """Return what a successor needs to listen with the same sockets."""
        return tuple(one.capture(keep) for one in self._listeners if not one.closed)
