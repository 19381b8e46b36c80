# SPDX-License-Identifier: Apache-2.0
"""How long no back-end is taken after one that is gone: longer if it was at fault."""

FIRST, LONGEST = 5, 160
"""Ticks: 1 s, then twice as long each time, up to 32 s."""
SHORT = 1
"""The same if the last one only went: one that comes and goes costs no time."""
SOUND = 50
"""Ticks (10 s) after which a back-end counts as sound."""


class Pause:
    """Counts ticks.  A back-end that comes meanwhile waits in the socket's queue."""

    def __init__(self) -> None:
        self._left = 0
        self._length = FIRST
        self._ticks = 0

    @property
    def over(self) -> bool:
        """Whether a back-end may be taken."""
        return not self._left

    def begin(self, *, at_fault: bool) -> None:
        """Take none for a while."""
        self._left, self._ticks = SHORT, 0
        if at_fault:
            self._left = self._length
            self._length = min(2 * self._length, LONGEST)

    def tick(self, *, connected: bool) -> None:
        """Count a tick, in which a back-end was there or was not."""
        self._left = max(self._left - 1, 0)
        self._ticks = self._ticks + 1 if connected else 0
        if self.sound:
            self._length = FIRST

    @property
    def sound(self) -> bool:
        """Whether the back-end has been there for long enough."""
        return self._ticks >= SOUND
