# SPDX-License-Identifier: Apache-2.0
"""Relays: what passes the signals of one notifier on to another.

The daemon's relays are worked by a thread in C (`ThreadRelays`), which all its devices
share.  Where that C is not installed the event loop works them (`LoopRelays`): it costs
each kick twice the time, and five times the processor time.  The unit tests use the
loop's, too, because they turn its clock by hand.
"""

import errno
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Protocol

from ..fds import Notifier
from ..interfaces import Loop

log = logging.getLogger(__name__)

_ENDS = (0, errno.EPIPE, errno.ECONNRESET, errno.EBADF)
"""How a source ends because of its other end, or because it is a pipe's wrong end."""


class Relay(Protocol):
    """Passes signals on until `close`."""

    @property
    def source(self) -> Notifier:
        """The notifier that the relay was made from; a lease compares it."""
        ...

    @property
    def count(self) -> int:
        """How many times signals were passed on."""
        ...

    def close(self) -> None:
        """Pass on what has come, stop, and close the relay's descriptors."""


class Relays(Protocol):
    """Makes relays, and works them."""

    def add(self, source: Notifier, target: Notifier) -> Relay:
        """Pass on the signals of `source` to `target`; both stay the caller's."""
        ...


class LoopRelays:
    """Relays that an event loop works."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def add(self, source: Notifier, target: Notifier) -> "LoopRelay":
        """Pass on the signals of `source` to `target`; both stay the caller's."""
        return LoopRelay(self._loop, source, target)


class LoopRelay:
    """A relay that an event loop works."""

    def __init__(self, loop: Loop, source: Notifier, target: Notifier) -> None:
        self.count = 0
        self.source = source
        self._loop = loop
        # Watch a duplicate that only the relay closes.  The owner may close `source` at
        # any time; epoll would go on to report the eventfd, which QEMU has open too,
        # and there would be no number left by which to remove it.
        with ExitStack() as undo:
            self._source = undo.enter_context(source.dup())
            self._target = target.dup()
            undo.pop_all()
        loop.add_reader(self._source.fileno(), self._forward)

    def _forward(self) -> None:
        try:
            self._pass_on()
        except EOFError:
            # The end of a pipe stays readable: the loop would call back
            # again and again.
            self._loop.remove_reader(self._source.fileno())

    def _pass_on(self) -> None:
        # Drain first: a kick that came between the signal and a later drain would be
        # lost.
        if self._source.drain():
            self.count += 1
            self._target.signal()

    def close(self) -> None:
        """Pass on what has come, stop, and close the relay's descriptors."""
        # Remove the number before it is closed and becomes another file's.
        self._loop.remove_reader(self._source.fileno())
        # What has come since the loop looked last.  If the front-end has replaced this
        # kick by another one, the master's driver need not kick again.
        with suppress(EOFError):
            self._pass_on()
        self._source.close()
        self._target.close()


class Thread(Protocol):
    """The C thread (`vhostpci_shared.relay_thread.RelayThread`)."""

    def add(self, source: int, target: int, *, target_is_eventfd: bool) -> int:
        """Return the number of a new relay."""
        ...

    def remove(self, number: int) -> tuple[int, int]:
        """Return how often it passed signals on, and the errno of its source."""
        ...

    def count(self, number: int) -> int:
        """Return how often it passed signals on."""
        ...

    def close(self) -> None:
        """End the thread."""


class ThreadRelays:
    """The relays of all devices, which one thread works.

    Args:
        start: starts the thread, with the first relay.
    """

    def __init__(self, start: Callable[[], Thread]) -> None:
        self._start = start
        self._thread: Thread | None = None

    def add(self, source: Notifier, target: Notifier) -> "ThreadRelay":
        """Pass on the signals of `source` to `target`; both stay the caller's.

        Raises:
            OSError: there is no descriptor for it, or no thread.
        """
        if self._thread is None:
            self._thread = self._start()
        return ThreadRelay(self._thread, source, target)

    def close(self) -> None:
        """End the thread; all relays are closed."""
        if self._thread is not None:
            self._thread.close()
            self._thread = None


class ThreadRelay:
    """A relay of the C thread, which has its own descriptors."""

    def __init__(self, thread: Thread, source: Notifier, target: Notifier) -> None:
        self.source = source
        self._thread = thread
        self._number = thread.add(
            source.fileno(), target.fileno(), target_is_eventfd=target.is_eventfd
        )
        self._ended: int | None = None

    @property
    def count(self) -> int:
        """How many times signals were passed on."""
        # After the end, the number may be that of another relay.
        if self._ended is not None:
            return self._ended
        return self._thread.count(self._number)

    def close(self) -> None:
        """Pass on what has come, stop, and close the relay's descriptors."""
        self._ended, error = self._thread.remove(self._number)
        if error not in _ENDS:
            log.warning("kicks were not relayed any more: %s", os.strerror(error))


def thread_relays() -> ThreadRelays | None:
    """Return relays for all devices; None, with a warning, without the C part."""
    try:
        from vhostpci_shared.relay_thread import RelayThread
    except ImportError as error:
        log.warning(
            "kicks are relayed in Python, which takes each of them twice the time: %s. "
            "Install a C compiler and the headers of Python (README.md), and then "
            "vhostpci-shared again",
            error,
        )
        return None
    return ThreadRelays(RelayThread)
