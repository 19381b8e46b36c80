# SPDX-License-Identifier: Apache-2.0
"""Who is served at once, and who has to wait because it comes back again and again.

A QEMU that starts connects again as soon as it has rejected a back-end, or was hung up
on, without any pause: hundreds of times a second, until it is killed.  So a process
that comes back at once is served only after a pause that grows, with its connection
open and unanswered.

A running QEMU with `reconnect=1` waits a second by itself.  It must never wait for us:
it asks its first question with its big lock held, and its whole VM stands still until
it has the answer.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from .. import sockets
from ..interfaces import Loop, Timer

AT_ONCE = 0.1
"""Seconds within which a process is back "at once": a QEMU that starts takes 5 ms."""
FREE = 3
"""How many times a process may come back at once without a pause."""
FIRST_PAUSE = 0.05
"""Seconds of the first pause; then twice as many, up to `LONGEST_PAUSE`."""
LONGEST_PAUSE = 2.0
FORGET = 60.0
"""Seconds after which a process that was here before counts as a new one."""
MOST = 16
"""Connections that wait at one time, and processes that are remembered, times four."""


@dataclass(slots=True)
class _Visitor:
    """What is known of a process that was here and did nothing useful."""

    left_at: float
    visits: int = 0
    """How often it was here."""
    at_once: int = 0
    """How often in a row it came back at once."""


class Admission:
    """Serve the connections of one socket, some of them after a pause.

    Args:
        loop: tells the time, and ends the pauses.
        serve: is called with each connection.
        least: seconds for which each process waits that did nothing useful before.
    """

    def __init__(
        self, loop: Loop, serve: Callable[[socket.socket], None], least: float = 0.0
    ) -> None:
        self._loop = loop
        self._serve = serve
        self._least = least
        self._visitors: dict[int, _Visitor] = {}
        self._waiting: dict[socket.socket, Timer] = {}

    def arrive(self, connection: socket.socket) -> None:
        """Serve a connection now or after a pause."""
        pause = self._pause(sockets.peer_pid(connection))
        if not pause:
            self._serve(connection)
        elif len(self._waiting) >= MOST:
            connection.close()
        else:
            end = partial(self._end_pause, connection)
            self._waiting[connection] = self._loop.call_later(pause, end)

    def _pause(self, pid: int) -> float:
        """Return how long a process that has just come has to wait."""
        visitor = self._visitors.get(pid)
        if visitor is None:
            return 0.0
        away = self._loop.time() - visitor.left_at
        visitor.at_once = visitor.at_once + 1 if away < AT_ONCE else 0
        if visitor.at_once <= FREE:
            return self._least
        # Without min(), a storm of hours would make this a number beyond any float.
        doublings = min(visitor.at_once - FREE - 1, 16)
        return max(self._least, min(FIRST_PAUSE * 2.0**doublings, LONGEST_PAUSE))

    def _end_pause(self, connection: socket.socket) -> None:
        del self._waiting[connection]
        if sockets.hung_up(connection):
            self.left(sockets.peer_pid(connection))
            connection.close()
        else:
            self._serve(connection)

    def left(self, pid: int) -> None:
        """Note that a process is gone, or was refused, and that it did nothing useful.

        Call it before the connection is closed: the process may be back at once.
        """
        visitor = self._remembered(pid) or _Visitor(0.0)
        visitor.visits += 1
        visitor.left_at = self._loop.time()
        self._visitors.pop(pid, None)
        if len(self._visitors) >= 4 * MOST:
            del self._visitors[next(iter(self._visitors))]
        self._visitors[pid] = visitor  # as the newest

    def welcome(self, pid: int) -> None:
        """Forget what a process did before: now it has done something useful."""
        self._visitors.pop(pid, None)

    def visits(self, pid: int) -> int:
        """Return how often a process was here lately and did nothing useful."""
        visitor = self._remembered(pid)
        return visitor.visits if visitor else 0

    def _remembered(self, pid: int) -> _Visitor | None:
        visitor = self._visitors.get(pid)
        if visitor is None or self._loop.time() - visitor.left_at >= FORGET:
            return None
        return visitor

    def close(self) -> None:
        """Close the connections that wait."""
        while self._waiting:
            connection, timer = self._waiting.popitem()
            timer.cancel()
            connection.close()
