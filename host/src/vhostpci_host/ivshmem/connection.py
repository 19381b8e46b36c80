# SPDX-License-Identifier: Apache-2.0
"""A slave's connection: ivshmem messages to its QEMU, or to an agent itself."""

import errno
import socket
from collections import deque
from typing import Protocol

from .. import sockets
from ..fds import exhausted, no_descriptors
from ..interfaces import Loop, Timer
from . import wire
from .linger import Linger
from .peers import Outgoing, refusal

MAX_QUEUE = 4096
"""Messages that may wait for a slave to read; about thirty sets of call eventfds."""

RETRY = 0.02


class SlaveOwner(Protocol):
    """Who made an ivshmem connection, and hears what becomes of it."""

    def slave_closed(self) -> None:
        """The slave's connection is closed."""

    def say_once(self, text: str) -> None:
        """Warn of a peer, but not each time that it tries again."""


class SlaveConnection:
    """An ivshmem connection (a `SlavePort`): it only ever sends.

    What the socket's buffer cannot take waits, with descriptors of its own: a slave's
    QEMU that got half a handshake would spin for ever.
    """

    def __init__(
        self,
        owner: SlaveOwner,
        connection: socket.socket,
        loop: Loop,
        linger: Linger,
    ) -> None:
        self.pid = sockets.peer_pid(connection)
        self.is_process = wire.is_process(connection)
        self._owner = owner
        self._loop = loop
        self._linger = linger
        self._connection = connection
        self._queue: deque[Outgoing] = deque()
        self._retry: Timer | None = None
        self._closed = self._greeted = False

    def start(self) -> None:
        """Watch for its end: nothing else comes from it."""
        self._loop.add_reader(self._connection.fileno(), self._readable)

    def _readable(self) -> None:
        if sockets.at_end(self._connection):
            self.close()

    def send(self, messages: list[Outgoing]) -> None:
        """Send messages, or queue them; a slave that never reads them is dropped."""
        try:
            self._queue.extend(
                Outgoing(one.message, one.fd and one.fd.copy()) for one in messages
            )
        except OSError as error:
            if not exhausted(error):
                raise
            self.give_up(no_descriptors(error))
            return
        if self._retry is None:
            self._flush()
        if len(self._queue) > MAX_QUEUE:
            self.drop(f"it left {len(self._queue)} messages unread")

    def _flush(self) -> None:
        self._retry = None
        try:
            while self._queue and not self._closed:
                wire.send_outgoing(self._connection, self._queue[0])
                self._greeted = True
                _release(self._queue.popleft())
        except EOFError:
            self._loop.call_later(0, self.close)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ETOOMANYREFS):
                raise
            self._retry = self._loop.call_later(RETRY, self._flush)

    def give_up(self, reason: str) -> None:
        """Drop a slave that we cannot tell what it is to know.

        One that was told nothing at all is refused: QEMU would spin for ever on a
        connection that ends without a word.
        """
        self._release_all()
        if not self._greeted:
            self._queue.extend(refusal())
            self._flush()
        self.drop(reason)

    def unread(self) -> bool:
        """Whether the slave has not read all that was sent."""
        if self._closed:
            return False
        return bool(self._queue) or wire.has_unread(self._connection)

    def hung_up(self) -> bool:
        """Whether the slave is gone, though we have not read so yet."""
        return sockets.hung_up(self._connection)

    def drop(self, reason: str) -> None:
        """Close the connection, soon: the device may be in the middle of it."""
        self._owner.say_once(f"slave (pid {self.pid}) dropped: {reason}")
        self._loop.call_later(0, self.close)

    def close(self) -> None:
        """Close the connection; the device learns of it."""
        if self._closed:
            return
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        self._release_all()
        self._loop.remove_reader(self._connection.fileno())
        self._linger.leave(self._connection)
        self._owner.slave_closed()

    def _release_all(self) -> None:
        while self._queue:
            _release(self._queue.popleft())


def _release(outgoing: Outgoing) -> None:
    if outgoing.fd is not None:
        outgoing.fd.close()
