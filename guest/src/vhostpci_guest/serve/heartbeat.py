# SPDX-License-Identifier: Apache-2.0
"""Whether the daemon lives, by its heartbeat in the metadata."""

TICK = 0.2
"""Seconds between two beats of the agent; the metadata asks for 0.25."""
SILENT_TICKS = 15
"""Ticks without a beat after which the daemon counts as silent: 3 s.

A data plane may ask for fewer.
"""


class DaemonHeartbeat:
    """Watches the daemon's heartbeat.

    Args:
        beat: its value now.
    """

    def __init__(self, beat: int) -> None:
        # What is there may be the last beat of a daemon that has died.  Its master's
        # QEMU uses the rings itself then, so no ring may run before we see a beat.
        self.seen = False
        """Whether the daemon has beaten since we watch."""
        self.patience = SILENT_TICKS
        """Ticks without a beat after which the daemon counts as silent."""
        self._beat = beat
        self._silent_ticks = SILENT_TICKS

    @property
    def alive(self) -> bool:
        """Whether the daemon has beaten within the last `patience` ticks."""
        return self._silent_ticks < self.patience

    @property
    def silent(self) -> float:
        """Seconds since its last beat, by our ticks; no more than `SILENT_TICKS`."""
        return round(self._silent_ticks * TICK, 1)

    def look(self, beat: int, *, tick: bool) -> None:
        """Compare the heartbeat with the last value.

        Args:
            beat: its value now.
            tick: whether this look counts as a tick, if the value is the old one.
        """
        if beat != self._beat:
            self._beat, self._silent_ticks, self.seen = beat, 0, True
        elif tick:
            # Ticks are counted, not seconds: a slave VM that was paused sees the clock
            # jump, but has given the daemon no chance to beat in the meantime.
            self._silent_ticks = min(self._silent_ticks + 1, SILENT_TICKS)
