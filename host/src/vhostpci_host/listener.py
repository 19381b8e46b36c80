# SPDX-License-Identifier: Apache-2.0
"""A listening socket in the loop."""

import socket
from collections.abc import Callable
from pathlib import Path

from . import sockets
from .interfaces import Loop

ACCEPT_PAUSE = 1.0
"""Seconds to accept nothing when there are no descriptors left."""


class Listener:
    """Accepts connections until it is closed.

    Args:
        server: the listening socket, ours from here on.
        loop: what tells of a connection.
        take: is called with each.
        complain: is called with why there can be none.
        path: of a socket that goes when it is closed.
    """

    def __init__(
        self,
        server: socket.socket,
        loop: Loop,
        take: Callable[[socket.socket], None],
        complain: Callable[[str], None],
        path: Path | None = None,
    ) -> None:
        self._server = server
        self._loop = loop
        self._take = take
        self._complain = complain
        self._path = path
        loop.add_reader(server.fileno(), self._ready)

    def _ready(self) -> None:
        try:
            connection = sockets.accept(self._server)
        except OSError as error:
            self._pause(error)
            return
        if connection is not None:
            self._take(connection)

    def _pause(self, error: OSError) -> None:
        """Out of descriptors: the queue stays readable, so don't spin on it."""
        self._complain(f"cannot accept a connection: {error.strerror}")
        self._loop.remove_reader(self._server.fileno())
        self._loop.call_later(ACCEPT_PAUSE, self._go_on)

    def _go_on(self) -> None:
        if self._server.fileno() >= 0:
            self._loop.add_reader(self._server.fileno(), self._ready)

    def close(self) -> None:
        """Accept no more, and remove the socket if we made it."""
        self._loop.remove_reader(self._server.fileno())
        self._server.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
