# SPDX-License-Identifier: Apache-2.0
"""The end of an ivshmem connection with a QEMU: it is QEMU who closes it.

A running QEMU connects in `chardev-add`, or in libvirt's attach, and reads the
handshake only in `device_add`.  If we close the connection in between, QEMU's chardev
drops what it has not read; `device_add` then reads nothing, again and again, with
the whole VM standing still, for ever.  So a connection that we want no more, be it
refused or of a window that is gone, stays open until QEMU closes its end.
"""

import socket
from typing import ClassVar

from .. import sockets
from ..interfaces import Loop
from . import wire
from .peers import refusal

LINGER = 30.0
"""Seconds after which nobody is between those two steps any more."""
MOST = 64
"""Connections that wait at a time; beyond that, somebody plays with us."""


def leave(connection: socket.socket, loop: Loop) -> None:
    """Close a connection once nobody can be hurt; a process's own at once."""
    if (
        wire.is_process(connection)
        or sockets.hung_up(connection)
        or len(Farewell.waiting) >= MOST
    ):
        connection.close()
    else:
        Farewell.waiting.add(Farewell(connection, loop))


def refuse(connection: socket.socket, loop: Loop) -> None:
    """Tell a peer that it cannot have what it connected for."""
    wire.send_last(connection, refusal())
    leave(connection, loop)


def end() -> None:
    """Wait no longer."""
    for one in list(Farewell.waiting):
        one.close()


class Farewell:
    """A connection that waits for its other end."""

    waiting: ClassVar[set["Farewell"]] = set()

    def __init__(self, connection: socket.socket, loop: Loop) -> None:
        self._connection = connection
        self._loop = loop
        self._late = loop.call_later(LINGER, self.close)
        loop.add_reader(connection.fileno(), self._readable)

    def _readable(self) -> None:
        if sockets.at_end(self._connection):
            self.close()

    def close(self) -> None:
        """Close it now."""
        self.waiting.discard(self)
        self._late.cancel()
        self._loop.remove_reader(self._connection.fileno())
        self._connection.close()
