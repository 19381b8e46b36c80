# SPDX-License-Identifier: Apache-2.0
"""A loop for one device: what fails in its callbacks fails that device alone."""

from collections.abc import Callable
from typing import Any

from ..fds import exhausted
from ..interfaces import Loop, Timer


class GuardedTimer:
    """A timer that its guard knows of while it is to come."""

    def __init__(self, forget: Callable[["GuardedTimer"], None]) -> None:
        self.timer: Timer | None = None
        self._forget = forget

    def cancel(self) -> None:
        """Have it not happen."""
        if self.timer is not None:
            self.timer.cancel()
        self._forget(self)


class GuardedLoop:
    """Another `Loop`, for the callbacks of one device.

    Args:
        loop: the one that calls back.
        failed: told of the first exception; nothing is called back after it.
        exhausted: told when there were no descriptors left; all goes on.
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
        self._timers: set[GuardedTimer] = set()
        self._closed = False

    def time(self) -> float:
        """Return the seconds of a clock that never goes back."""
        return self._loop.time()

    def call_later(
        self, delay: float, callback: Callable[..., Any], /, *args: Any
    ) -> Timer:
        """Call `callback` once, after `delay` seconds."""
        guarded = GuardedTimer(self._timers.discard)

        def ring() -> None:
            self._timers.discard(guarded)
            self.run(callback, *args)

        if not self._closed:
            guarded.timer = self._loop.call_later(delay, ring)
            self._timers.add(guarded)
        return guarded

    def add_reader(self, fd: int, callback: Callable[..., Any], /, *args: Any) -> None:
        """Call `callback` whenever `fd` can be read."""
        if not self._closed:
            self._readers.add(fd)
            self._loop.add_reader(fd, lambda: self.run(callback, *args))

    def remove_reader(self, fd: int, /) -> None:
        """Call it no more."""
        if fd in self._readers:
            self._readers.discard(fd)
            self._loop.remove_reader(fd)

    def close(self) -> None:
        """Call nothing back any more."""
        self._closed = True
        for fd in self._readers.copy():
            self.remove_reader(fd)
        for timer in self._timers.copy():
            timer.cancel()

    def run(self, callback: Callable[..., Any], *args: Any) -> None:
        """Call `callback` now; if it fails, the device has failed."""
        if self._closed:
            return  # it was ready in the same turn of the loop
        try:
            try:
                callback(*args)
            except OSError as error:
                if not exhausted(error):
                    raise
                self._exhausted(error)
        except Exception as error:
            self.close()
            self._failed(error)
