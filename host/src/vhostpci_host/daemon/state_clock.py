# SPDX-License-Identifier: Apache-2.0
"""Since when a device is in its state."""

import time
from collections.abc import Callable


class StateClock:
    """Remembers when the state of a device was seen to change.

    Args:
        fresh: whether the device begins now.  One that a daemon before us has served
            may be in its state for long, and nothing says for how long.
        now: the time as people have it, in seconds since 1970.
    """

    def __init__(self, *, fresh: bool, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._state = ""
        self._since: float | None = None
        self._fresh = fresh

    def look(self, state: str) -> float | None:
        """Note the present state; return since when it is that, None if unknown."""
        if state != self._state:
            if self._state or self._fresh:
                self._since = round(self._now(), 1)
            self._state = state
        return self._since
