# SPDX-License-Identifier: Apache-2.0
"""A fake event loop (a `vhostpci_host.interfaces.Loop`) whose time the test sets."""

import heapq
import itertools
import select
from collections.abc import Callable
from typing import Any

_ROUNDS = 1000


class ManualTimer:
    """A callback that waits for its time, unless it is cancelled."""

    def __init__(self, callback: Callable[[], Any]) -> None:
        self.callback: Callable[[], Any] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualLoop:
    """A `Loop` that calls back only within `advance`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._order = itertools.count()
        self._timers: list[tuple[float, int, ManualTimer]] = []
        self._readers: dict[int, Callable[[], Any]] = {}

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], Any], /) -> ManualTimer:
        timer = ManualTimer(callback)
        heapq.heappush(self._timers, (self.now + delay, next(self._order), timer))
        return timer

    def add_reader(self, fd: int, callback: Callable[[], Any], /) -> None:
        self._readers[fd] = callback

    def remove_reader(self, fd: int, /) -> bool:
        return self._readers.pop(fd, None) is not None

    def watched(self) -> set[int]:
        """Return the descriptors that have a reader."""
        return set(self._readers)

    def advance(self, seconds: float = 0.0) -> None:
        """Let time pass: call due timers, and the readers of readable descriptors."""
        end = self.now + seconds
        self._read()
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            self.now = max(self.now, when)
            if timer.callback is not None:
                timer.callback()
            self._read()
        self.now = end

    def _read(self) -> None:
        for _ in range(_ROUNDS):
            poll = select.poll()
            for fd in self._readers:
                poll.register(fd, select.POLLIN)
            ready = poll.poll(0)
            if not ready:
                return
            for fd, _ in ready:
                if fd in self._readers:
                    self._readers[fd]()
        raise AssertionError(
            "descriptors stay readable: a reader does not read its descriptor"
        )
