# SPDX-License-Identifier: Apache-2.0
"""Whether a name in a directory may have changed: one look for all files in it.

Theory of operation.  Another process may remove or replace our sockets and arenas.  A
look at each of them would be three system calls a second for each device.  But who
makes, removes or renames a file changes its directory's `ctime`, which no process can
set.  So one look at the directory is enough while that stays the same.

The kernel takes the time from a clock that steps: by some milliseconds, and on some
file systems by a second.  So a second change leaves no trace if it follows the first
one closely.  A directory that had changed shortly before a look therefore counts as
changed with the next look, too.

Two things are not seen in this way: a mount over one of the files, and a change on a
network file system of which our kernel has not heard yet.  For their sake a directory
counts as changed once in `ANYWAY` looks.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

PAUSE = 0.2
"""Seconds from one look to the next: devices that tick together share one."""
STEP_NS = 2 * 10**9
"""Nanoseconds within which two changes may have the same time."""
ANYWAY = 32
"""Looks of which one counts as a change without a sign of it."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """Which directory there is, and when it changed last."""

    device: int
    inode: int
    changed_ns: int


def stamp(path: Path) -> Stamp | None:
    """Look at a directory; None if we cannot."""
    try:
        info = os.stat(path)
    except OSError:
        return None
    return Stamp(info.st_dev, info.st_ino, info.st_ctime_ns)


class Directory:
    """One directory, at which many devices look.

    Args:
        read: looks at it.
        now: a monotonic clock, in seconds.
        clock: the clock of the file systems, in nanoseconds.
    """

    def __init__(
        self,
        read: Callable[[], Stamp | None],
        now: Callable[[], float],
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._read = read
        self._now = now
        self._clock = clock
        self._last: Stamp | None = None
        self._recent = False
        self._looked_at = now() - PAUSE
        self._looks = 0
        self._changes = 0

    def changes(self) -> int:
        """Return a number that has grown if a name may have changed."""
        now = self._now()
        if now - self._looked_at >= PAUSE:
            self._looked_at = now
            self._looks += 1
            if self._changed() or self._looks % ANYWAY == 0:
                self._changes += 1
        return self._changes

    def _changed(self) -> bool:
        # Order: the clock before the look.  If we are delayed between the two, the
        # change looks more recent than it is, and never less.
        before, clock = self._last, self._clock()
        self._last = found = self._read()
        again = self._recent
        self._recent = found is not None and clock - found.changed_ns < STEP_NS
        return again or found is None or found != before


class Directories:
    """The directories of one daemon, each of which is looked at once for all devices.

    Args:
        now: a monotonic clock, in seconds.
        clock: the clock of the file systems, in nanoseconds.
    """

    def __init__(
        self, now: Callable[[], float], clock: Callable[[], int] = time.time_ns
    ) -> None:
        self._now = now
        self._clock = clock
        self._known: WeakValueDictionary[Path, Directory] = WeakValueDictionary()

    def at(self, path: Path) -> Directory:
        """Return the directory at `path`; it is the caller's to keep."""
        found = self._known.get(path)
        if found is None:
            found = self._known[path] = Directory(
                partial(stamp, path), self._now, self._clock
            )
        return found


class NameWatch:
    """Whether a name may have changed in any of some directories.

    Args:
        directories: these.
    """

    def __init__(self, *directories: Directory) -> None:
        self._directories = directories
        self._seen: list[int] = []

    def changed(self) -> bool:
        """Whether a name may have changed since this was asked last; at first, it may.

        Ask before you look at the names: what changes after the question is in the
        next answer.
        """
        found = [directory.changes() for directory in self._directories]
        before, self._seen = self._seen, found
        return found != before
