# SPDX-License-Identifier: Apache-2.0
"""Time limits for a guest that do not count the time it waits for a processor.

On a loaded machine a guest needs more time by our clock for the same work.  The kernel
counts for each thread how long it was ready to run and had no processor
(/proc/PID/task/TID/schedstat, second number).  A limit here counts the
rest: the time in which the guest ran, or slept because it had nothing to do.
"""

import time
from collections.abc import Callable
from pathlib import Path

LAST_RESORT = 10
"""A limit ends anyway after so many times its length by the test's clock."""


class Patience:
    """A limit of so many seconds of a process's own time; it starts now.

    Each of `pids` returns a process to watch; None means that there is none now.
    Without any, only the test's clock counts.
    """

    def __init__(self, seconds: float, *pids: Callable[[], int | None]) -> None:
        self.seconds = seconds
        self._pids = pids
        self._start = time.monotonic()
        self._waited: list[dict[str, float]] = [{} for _ in pids]
        """For each process how long each of its threads has waited, as last seen."""
        self._before = [_delays(pid()) for pid in pids]

    def is_over(self) -> bool:
        """Return whether the process has used up its time."""
        wall = self._wall()
        if wall <= self.seconds:  # its own time is never longer than that
            return False
        return wall > self.seconds * LAST_RESORT or self._own() > self.seconds

    def __str__(self) -> str:
        """Say how long it was, by both clocks."""
        return f"{self._own():.0f} s of its own time ({self._wall():.0f} s of ours)"

    def starved(self) -> float:
        """Return the seconds that the process has waited for a processor so far."""
        return self._wall() - self._own()

    def _wall(self) -> float:
        return time.monotonic() - self._start

    def _own(self) -> float:
        """Return the time by our clock, less the longest wait of one thread.

        The longest, not the sum: several threads may wait at the same time.  Processes
        are taken to wait one after the other, as each waits for the next one's end.
        """
        for pid, waited, before in zip(
            self._pids, self._waited, self._before, strict=True
        ):
            # What a thread that has ended meanwhile had waited still counts.
            for thread, delay in _delays(pid()).items():
                waited[thread] = delay - before.get(thread, 0.0)
        longest = (max(waited.values(), default=0.0) for waited in self._waited)
        return self._wall() - sum(longest)


def _delays(pid: int | None) -> dict[str, float]:
    """Return the seconds that each thread has waited for a processor."""
    found = {}
    for thread in Path(f"/proc/{pid}/task").glob("*") if pid else ():
        try:
            words = (thread / "schedstat").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            if not thread.exists():
                continue  # the thread has ended
            raise  # a kernel without CONFIG_SCHED_INFO: no limit could be counted
        found[thread.name] = int(words[1]) / 1e9
    return found
