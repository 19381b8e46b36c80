# SPDX-License-Identifier: Apache-2.0
"""When to start a ring again whose system calls on the TAP failed too often.

The cause may pass: the file system behind the master's memory is full, or the kernel
has no memory.  So the agent starts such a ring again, after a pause that doubles.
"""

from dataclasses import dataclass

FIRST, LONGEST = 5, 160
"""Ticks until the first attempt, and at most: 1 s and 32 s."""
SOUND = 50
"""A ring that ran for so many ticks (10 s) works: its next failure is a new one."""


@dataclass(slots=True)
class _Failure:
    session: int
    pause: int
    due: int
    """The tick at which the ring may start again."""


class Retries:
    """The failed rings of one device; time is counted in ticks."""

    def __init__(self) -> None:
        self._now = 0
        self._failures: dict[int, _Failure] = {}

    def tick(self) -> None:
        """Count a tick."""
        self._now += 1

    def failed(self, index: int, session: int) -> bool:
        """Note that a ring failed; return whether that is the first time in a row."""
        before = self._failures.get(index)
        again = (
            before is not None
            and before.session == session
            and self._now - before.due < SOUND
        )
        pause = min(2 * before.pause, LONGEST) if before and again else FIRST
        self._failures[index] = _Failure(session, pause, self._now + pause)
        return not again

    def waits(self, index: int, session: int) -> bool:
        """Whether a ring must not start yet; in another session it may."""
        failure = self._failures.get(index)
        return (
            failure is not None
            and failure.session == session
            and self._now < failure.due
        )

    @property
    def due(self) -> bool:
        """Whether the pause of a ring ends with this tick."""
        return any(failure.due == self._now for failure in self._failures.values())
