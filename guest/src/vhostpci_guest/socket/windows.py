# SPDX-License-Identifier: Apache-2.0
"""A daemon's sockets as windows: the master's memory in attach mode.

Theory of operation.  The daemon names windows in the region table.  A window may appear
before it is named or seconds later, and disappear while rings use it.  So a window is
never unmapped under a ring: one that disappears is not found any more, but stays mapped
until the link says by `want` that its rings have stopped using it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack
from pathlib import Path

from vhostpci_shared.errors import Said, said
from vhostpci_shared.wire import ProtocolError

from ..interfaces import Window
from .client import HANDSHAKE, RETRY, Client, ServerGone

log = logging.getLogger(__name__)

SOON = 0.02
"""Seconds until the first of further attempts to open a window; then twice as many,
up to `RETRY`."""


class SocketWindows:
    """Windows that are sockets of the daemon's, beside the device's own.

    Args:
        path: the device's socket; that of window W has ``.W`` appended.
        now: a monotonic clock, in seconds.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._now = now
        self._sockets: dict[int, _WindowSocket] = {}

    def find(self, number: int) -> Window | None:
        """Return the window with this ID, if it is there."""
        found = self._sockets.get(number)
        return found.window if found else None

    def want(self, numbers: Set[int]) -> None:
        """Open these windows, now or when they appear, and close all others."""
        for number in self._sockets.keys() - numbers:
            self._sockets.pop(number).close()
        for number in numbers - self._sockets.keys():
            path = self._path.with_name(f"{self._path.name}.{number}")
            self._sockets[number] = _WindowSocket(path, number, self._now)
        for wanted in self._sockets.values():
            wanted.release_lost()

    def look(self) -> None:
        """Connect where it is due, and read what the daemon sends."""
        for wanted in self._sockets.values():
            wanted.look()

    def fds(self) -> Iterator[int]:
        """Return the connections."""
        for wanted in self._sockets.values():
            yield from wanted.fds()

    @property
    def interval(self) -> float | None:
        """Seconds until the next look, if nothing happens before."""
        return min(
            (
                wanted.interval
                for wanted in self._sockets.values()
                if wanted.interval is not None
            ),
            default=None,
        )


class _WindowSocket:
    """One window's socket, tried repeatedly while no daemon listens on it."""

    def __init__(self, path: Path, number: int, now: Callable[[], float]) -> None:
        self._path = path
        self._number = number
        self._now = now
        self._client: Client | None = None
        self._lost = ExitStack()
        """Closes connections that have ended, whose memory may be in use."""
        self._due = now()
        self._pause = SOON
        self._said = ""

    @property
    def window(self) -> Window | None:
        """The window, while the daemon shows it."""
        client = self._client
        if client is None or not client.connected or client.window.id != self._number:
            return None
        return client.window

    def look(self) -> None:
        """Connect, or read what the daemon sends."""
        try:
            if self._client is None and self._now() >= self._due:
                self._client = Client(self._path)
                self._due = self._now() + HANDSHAKE
            if self._client is not None:
                self._client.receive()
                self._check(self._client)
        except ServerGone as why:
            self._lose(said(why))
        except ProtocolError as why:
            self._lose(Said(f"{self._path}: {why}", why.code))
        except OSError as error:
            self._lose(f"{self._path}: {error.strerror or error}")

    def _check(self, client: Client) -> None:
        """Check that the handshake is complete in time, and is this window's.

        Raises:
            ProtocolError: it is too late, or the socket shows another window.
        """
        if self.window is not None:
            self._pause, self._said = SOON, ""
        elif client.connected:
            number = client.window.id
            raise ProtocolError(f"the server shows window {number}", code="P076")
        elif self._now() >= self._due:
            raise ProtocolError(f"no handshake within {HANDSHAKE:g} s", code="P077")

    def _lose(self, why: str) -> None:
        """Connect again after a pause."""
        if self._client is not None:
            self._lost.callback(self._client.close)
            if self.window is None:  # it was never found, so no ring uses it
                self.release_lost()
            self._client = None
        self._due = self._now() + self._pause
        self._pause = min(2 * self._pause, RETRY)
        if why != self._said:
            log.warning("%s; trying again", why)
            self._said = why

    def release_lost(self) -> None:
        """Unmap what the daemon shows no more; no ring may use it."""
        self._lost.close()

    def fds(self) -> Iterator[int]:
        """Return the connection."""
        if self._client is not None:
            yield self._client.fileno()
            yield from self._client.alarms()

    @property
    def interval(self) -> float | None:
        """Seconds until the next attempt, or until the handshake is too late."""
        if self.window is not None:
            return None
        return max(0.0, self._due - self._now())

    def close(self) -> None:
        """Close the connection, and unmap the window."""
        with self._lost:
            if self._client is not None:
                self._client.close()
                self._client = None
