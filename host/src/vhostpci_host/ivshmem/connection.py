# SPDX-License-Identifier: Apache-2.0
"""A slave's ivshmem connection: sends messages, and notices when the slave is gone."""

import errno
import socket
from collections import deque
from typing import Protocol

from vhostpci_shared import ivshmem
from vhostpci_shared.errors import Said, code_of
from vhostpci_shared.limits import exhausted, no_descriptors

from .. import sockets
from ..fds import Fd
from ..interfaces import Loop, Timer
from ..keeper.shelf import Left, Shelf
from ..keeper.slots import Mark, StateError
from ..keeper.store import Keep
from . import wire
from .kept import ConnectionState, capture_queue, restore_queue
from .linger import LINGER, Linger
from .peers import Outgoing, refusal

MAX_QUEUE = 4096
"""Messages that may wait for a slave to read; about thirty sets of call eventfds."""

RETRY = 0.02
"""Seconds until we try again to send what the socket did not take."""


class SlaveOwner(Protocol):
    """The owner of a `SlaveConnection`, which the connection calls back."""

    def slave_closed(self) -> None:
        """Note that the slave's connection is closed."""

    def say_once(self, text: str) -> None:
        """Log a warning about the slave, unless it repeats the last one."""


class SlaveConnection:
    """An ivshmem connection to a slave (a `SlavePort`), which only listens to us.

    Messages that the socket's buffer cannot take wait in a queue, with duplicates of
    their descriptors: the caller may close its own at once.
    """

    def __init__(
        self,
        owner: SlaveOwner,
        connection: socket.socket,
        loop: Loop,
        linger: Linger,
        shelf: Shelf | None = None,
    ) -> None:
        self.pid = sockets.peer_pid(connection)
        self.is_process = wire.is_process(connection)
        self.takes_kicks = wire.takes_kicks(connection)
        self._owner = owner
        self._loop = loop
        self._linger = linger
        self._connection = connection
        self._shelf = shelf
        self._queue: deque[Outgoing] = deque()
        self._retry: Timer | None = None
        self._closed = self._sent_any = self._leaving = False
        self.since = loop.time()
        """When it connected."""
        self.spoke = False
        """Whether it has sent something, so that it is no slave."""

    def start(self) -> None:
        """Watch for the end of the connection."""
        self._loop.add_reader(self._connection.fileno(), self._readable)

    def _readable(self) -> None:
        sent = sockets.discard(self._connection)
        if sent == 0:
            self.close()
        elif sent and not self.spoke:
            self.spoke = True
            self.drop(
                "it sends data, which no slave does: is it a master's QEMU? "
                "Its socket is NAME.vhost-user"
            )

    def send(self, messages: list[Outgoing]) -> None:
        """Send messages, or queue them; drop a slave that leaves too many unread."""
        if self._leaving or self._closed:
            return
        # Duplicate every descriptor before the first message is sent: if descriptors
        # run out, a QEMU must not be left with half a handshake.
        copies: list[Outgoing] = []
        try:
            for one in messages:
                copies.append(Outgoing(one.message, one.fd and one.fd.copy()))
        except OSError as error:
            for copy in copies:
                _release(copy)
            if not exhausted(error):
                raise
            self.give_up(no_descriptors(error))
            return
        self._queue.extend(copies)
        if self._shelf is not None:
            # Before the first is sent: QEMU must not be told of a peer twice.
            self._shelf.save()
        # While a timer is set, older messages wait: these must not overtake them, since
        # a vector is known by its place in the order.
        if self._retry is None:
            self._flush()
        if len(self._queue) > MAX_QUEUE:
            self.drop(f"it left {len(self._queue)} messages unread")

    def _flush(self) -> None:
        self._retry = None
        try:
            while self._queue and not self._closed:
                self._send_first()
                self._sent_any = True
                # Take a message off the queue only once it has been sent.
                _release(self._queue.popleft())
            if self._leaving:
                self._loop.call_later(0, self.close)
        except EOFError:
            # Close it later, like `drop`: the device may have called `send`.
            self._loop.call_later(0, self.close)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ETOOMANYREFS):
                raise
            # A timer, because no event says when ETOOMANYREFS is over: Linux counts the
            # descriptors in flight of all our user's sockets together.
            self._retry = self._loop.call_later(RETRY, self._flush)

    def _send_first(self) -> None:
        """Send the first message of the queue; mark it as sent for a successor."""
        if self._shelf is None:
            wire.send_outgoing(self._connection, self._queue[0])
            return
        sent = self._shelf.mark(Mark.SENT)
        self._shelf.set_mark(Mark.SENDING, sent + 1)
        try:
            wire.send_outgoing(self._connection, self._queue[0])
        except OSError:
            self._shelf.set_mark(Mark.SENDING, sent)
            raise
        self._shelf.set_mark(Mark.SENT, sent + 1)

    def give_up(self, reason: str) -> None:
        """Drop a slave because we lack the descriptors to send it what it needs."""
        if self._leaving or self._closed:
            return
        self._leaving = True
        text = f"slave (pid {self.pid}) dropped: {reason}"
        self._owner.say_once(Said(text, code_of(reason)))
        # A QEMU that has read nothing yet would not stop reading if the connection just
        # ended; a refusal ends its device_add with an error.
        if not self._sent_any and not self._queue:
            self._queue.extend(refusal(ivshmem.EXHAUSTED))
        # What waits has its descriptors, and may be the rest of a handshake: without it
        # a QEMU would stand still until the connection ends, and spin from then on.
        self._loop.call_later(LINGER, self.close)
        if self._retry is None:
            self._flush()

    def capture(self, keep: Keep) -> ConnectionState:
        """Return what a successor needs to go on with the connection."""
        return ConnectionState(
            socket=keep(self._connection),
            spoke=self.spoke,
            sent_any=self._sent_any,
            first=self._shelf.mark(Mark.SENT) if self._shelf else 0,
            queue=capture_queue(self._queue, keep),
        )

    def restore(
        self, state: ConnectionState, left: Left, window: Fd
    ) -> Outgoing | None:
        """Go on with what a daemon before us had still to send.

        Returns:
            the message of which nothing says whether it was sent, if there is one; it
            is not sent again, and the caller closes its descriptor.

        Args:
            state: what it has left of this connection.
            left: has the descriptors.
            window: the file of window 0.

        Raises:
            StateError: it does not fit the mark of what was sent.
        """
        shelf = self._shelf
        assert shelf is not None, "no keeper"
        sent = shelf.mark(Mark.SENT) - state.first
        if not 0 <= sent <= len(state.queue):
            raise StateError(f"{sent} messages of {len(state.queue)} were sent")
        self.spoke, self._sent_any = state.spoke, state.sent_any or bool(sent)
        self._queue.extend(restore_queue(state.queue[sent:], left, window))
        # The daemon was killed within sendmsg(), or between that and the mark.
        if not self._queue or shelf.mark(Mark.SENDING) != shelf.mark(Mark.SENT) + 1:
            return None
        shelf.set_mark(Mark.SENT, shelf.mark(Mark.SENDING))
        return self._queue.popleft()

    def forget_peer(self, peer: int) -> None:
        """Send no further eventfd of this peer."""
        queue, self._queue = self._queue, deque()
        for one in queue:
            if one.message == peer and one.fd is not None:
                one.fd.close()
            else:
                self._queue.append(one)

    def go_on(self) -> None:
        """Send what a daemon before us had still to send."""
        if self._queue and self._retry is None:
            self._flush()

    def unread(self) -> bool:
        """Whether the slave has not yet read everything that was sent."""
        if self._closed:
            return False
        return bool(self._queue) or sockets.has_unread(self._connection)

    def hung_up(self) -> bool:
        """Whether the slave has closed its end, even if we have not read that yet."""
        return sockets.hung_up(self._connection)

    def drop(self, reason: str) -> None:
        """Close the connection for `reason`, once the present callback has returned."""
        text = f"slave (pid {self.pid}) dropped: {reason}"
        self._owner.say_once(Said(text, code_of(reason)))
        # Not at once: `close` makes the device forget its slave, and the device may
        # have called `send` with that slave in its hands.
        self._loop.call_later(0, self.close)

    def close(self) -> None:
        """Close the connection, and tell the owner."""
        if self._closed:
            return
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        self._release_all()
        # Before `leave`, which may watch the same socket, or close it.
        self._loop.remove_reader(self._connection.fileno())
        self._linger.leave(self._connection)
        self._owner.slave_closed()

    def _release_all(self) -> None:
        while self._queue:
            _release(self._queue.popleft())


def _release(outgoing: Outgoing) -> None:
    if outgoing.fd is not None:
        outgoing.fd.close()
