# SPDX-License-Identifier: Apache-2.0
"""Calls once a front-end has been quiet, as it describes its rings in many messages."""

from collections.abc import Callable

from ..interfaces import Loop, Timer

SETTLE = 0.005
"""Seconds without a message until the device settles."""
SETTLE_MAX = 0.020
"""Seconds after the first message until the device settles though more keep coming."""


class Debounce:
    """Calls `settle` once no message has come for a while.

    Args:
        loop: calls back.
        settle: what to call.  The debounce stays armed until `settle` calls `cancel`
            or `retry_in`.
    """

    def __init__(self, loop: Loop, settle: Callable[[], None]) -> None:
        self._loop = loop
        self._settle = settle
        self._timer: Timer | None = None
        self._due = self._last_message_at = 0.0

    def on_message(self) -> None:
        """Settle once it has been quiet after this message."""
        now = self._last_message_at = self._loop.time()
        if self._timer is None:
            # Only the first message sets the limit, or a front-end that never stops
            # talking would never be served.
            self._due = now + SETTLE_MAX
            self._timer = self._loop.call_later(SETTLE, self._on_timer)

    def retry_in(self, delay: float) -> None:
        """Try to settle again after `delay` seconds."""
        self.cancel()
        self._timer = self._loop.call_later(delay, self._on_timer)

    def cancel(self) -> None:
        """Do not settle until the next message."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        # One timer serves a burst of messages: rather than move it with each message,
        # see here whether it was too early.
        now = self._loop.time()
        due = min(self._last_message_at + SETTLE, self._due)
        if now < due:
            self.retry_in(due - now)
        else:
            self._settle()
