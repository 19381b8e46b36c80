# SPDX-License-Identifier: Apache-2.0
"""When a front-end has said enough: it describes its rings in many small messages."""

from collections.abc import Callable

from ..interfaces import Loop, Timer

SETTLE = 0.005
"""Seconds of quiet after a message until the device settles."""
SETTLE_MAX = 0.020
"""Seconds after which it settles though messages keep coming."""


class Settling:
    """Calls `settle` once it has been quiet for a while.

    Args:
        loop: what calls back.
        settle: what is called; it cancels us, or asks for another time.
    """

    def __init__(self, loop: Loop, settle: Callable[[], None]) -> None:
        self._loop = loop
        self._settle = settle
        self._timer: Timer | None = None
        self._due = self._touched_at = 0.0

    def touch(self) -> None:
        """Something may have changed: settle when it has been quiet for a while."""
        now = self._touched_at = self._loop.time()
        if self._timer is None:
            self._due = now + SETTLE_MAX
            self._timer = self._loop.call_later(SETTLE, self._look)

    def again(self, delay: float) -> None:
        """Look again after `delay` seconds."""
        self.cancel()
        self._timer = self._loop.call_later(delay, self._look)

    def cancel(self) -> None:
        """Forget what was touched."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        now = self._loop.time()
        due = min(self._touched_at + SETTLE, self._due)
        if now < due:
            self.again(due - now)
        else:
            self._settle()
