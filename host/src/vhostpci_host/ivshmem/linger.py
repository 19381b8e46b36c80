# SPDX-License-Identifier: Apache-2.0
"""Connections that the daemon has finished with, kept open until QEMU closes them.

A running QEMU connects in `chardev-add`, or in libvirt's attach, and reads the
handshake only in `device_add`.  If the daemon closes the connection in between, QEMU's
chardev drops what it has not read; `device_add` then reads nothing, again and again,
without end, and the whole VM stands still.  So a connection that was refused, or whose
device or window is gone, stays open until QEMU closes its end.
"""

import socket
from collections import Counter
from functools import partial

from .. import sockets
from ..interfaces import Loop, Timer
from . import wire
from .peers import refusal

LINGER = 30.0
"""Seconds after which no QEMU is still between `chardev-add` and `device_add`."""
MOST = 64
"""The most connections that are kept open, so that descriptors stay for the devices."""


class Linger:
    """Keep connections open until their QEMU has closed them.

    Args:
        loop: the daemon's own loop.  The loop of one device will not do: it calls
            nothing back once the device is removed, and the connections stay longer.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: dict[socket.socket, Timer] = {}

    def leave(self, connection: socket.socket) -> None:
        """Take a connection over, and close it as soon as that harms no QEMU."""
        # An agent process copes with a connection that closes at any time; a QEMU that
        # has closed its end reads no more.
        if wire.is_process(connection) or sockets.hung_up(connection):
            connection.close()
            return
        if len(self._waiting) >= MOST:
            self._make_room()
        timer = self._loop.call_later(LINGER, partial(self._close, connection))
        self._waiting[connection] = timer
        readable = partial(self._readable, connection)
        self._loop.add_reader(connection.fileno(), readable)

    def _make_room(self) -> None:
        """Close the oldest connection of the program that has the most of them."""
        # Not the new one: its QEMU is the one that is least likely to have read what
        # it was sent.  By program, so that one cannot have others hung up on.
        counts = Counter(map(sockets.peer_pid, self._waiting))
        # max() returns the first of several, and they are in the order of their age.
        self._close(max(self._waiting, key=lambda one: counts[sockets.peer_pid(one)]))

    def refuse(self, connection: socket.socket) -> None:
        """Tell a slave that it is refused, and keep its connection open."""
        wire.send_last(connection, refusal())
        self.leave(connection)

    def close(self) -> None:
        """Close all connections now, because the daemon ends."""
        for connection in list(self._waiting):
            self._close(connection)

    def _readable(self, connection: socket.socket) -> None:
        # A QEMU that sends something has not closed its end; what it sent is discarded.
        if sockets.discard(connection) == 0:
            self._close(connection)

    def _close(self, connection: socket.socket) -> None:
        self._waiting.pop(connection).cancel()
        # Before close(): a closed socket has no number to remove.
        self._loop.remove_reader(connection.fileno())
        connection.close()
