# SPDX-License-Identifier: Apache-2.0
"""Run the callbacks of one device: an exception in them fails that device only."""

from collections.abc import Callable
from typing import Any

from vhostpci_shared.limits import exhausted

from ..interfaces import Loop, Timer


class IsolatedTimer:
    """A timer that its `IsolatedLoop` lists until it fires or is cancelled."""

    def __init__(self, forget: Callable[["IsolatedTimer"], None]) -> None:
        self.timer: Timer | None = None
        self._forget = forget

    def cancel(self) -> None:
        # None: the loop was closed already when this timer was asked for.
        if self.timer is not None:
            self.timer.cancel()
        self._forget(self)


class IsolatedLoop:
    """A `Loop` that runs the callbacks of one device and catches their exceptions.

    Args:
        loop: the daemon's loop, which waits for all devices.
        failed: called with the first exception; the loop is closed by then.
        exhausted: called when a callback ran out of descriptors; the loop goes on.
    """

    def __init__(
        self,
        loop: Loop,
        failed: Callable[[Exception], None],
        exhausted: Callable[[OSError], None],
    ) -> None:
        self._loop = loop
        self._failed = failed
        self._exhausted = exhausted
        self._readers: set[int] = set()
        self._timers: set[IsolatedTimer] = set()
        self._closed = False

    def time(self) -> float:
        """Return the loop's monotonic clock, in seconds."""
        return self._loop.time()

    def call_later(
        self, delay: float, callback: Callable[..., Any], /, *args: Any
    ) -> Timer:
        """Call `callback` once, after `delay` seconds."""
        timer = IsolatedTimer(self._timers.discard)

        def fire() -> None:
            self._timers.discard(timer)
            self.run(callback, *args)

        if not self._closed:
            timer.timer = self._loop.call_later(delay, fire)
            self._timers.add(timer)
        return timer

    def add_reader(self, fd: int, callback: Callable[..., Any], /, *args: Any) -> None:
        """Call `callback` whenever `fd` is readable."""
        if not self._closed:
            self._readers.add(fd)
            self._loop.add_reader(fd, lambda: self.run(callback, *args))

    def remove_reader(self, fd: int, /) -> None:
        """Stop watching `fd`; a descriptor that is not watched is ignored."""
        # Only our own: another device may watch a descriptor that has this number by
        # now, because the kernel gives a closed number to the next open().
        if fd in self._readers:
            self._readers.discard(fd)
            self._loop.remove_reader(fd)

    def close(self) -> None:
        """Stop all timers and readers; later requests for callbacks are ignored."""
        # Copies, since each cancel() and remove_reader() changes its set.
        self._closed = True
        for fd in self._readers.copy():
            self.remove_reader(fd)
        for timer in self._timers.copy():
            timer.cancel()

    def run(self, callback: Callable[..., Any], *args: Any) -> None:
        """Call `callback` now; an exception closes the loop and fails the device."""
        if self._closed:
            # The device failed in this same turn of the loop, in which this callback
            # was due, too.
            return
        try:
            try:
                callback(*args)
            except OSError as error:
                if not exhausted(error):
                    raise
                # Inside the outer try: if the shortage cannot be handled either, the
                # device fails.
                self._exhausted(error)
        except Exception as error:
            self.close()
            self._failed(error)
