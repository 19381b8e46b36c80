# SPDX-License-Identifier: Apache-2.0
"""Reads a file of /proc that another process can make slow, or endless to read.

Theory of operation.  For /proc/PID/maps the kernel takes a lock of that process, which
the process holds while it maps memory, and prints a line for each mapping.  A hostile
process may have 65530 of them, which take some tens of milliseconds.  The daemon has
one loop for all devices, and must not stand still for that long again and again.

So another thread reads, and only so many bytes, and the loop waits for it.  There is a
stock of time for reads that are not quick: it holds at most `STOCK` seconds, and a
hundredth of the time that goes by flows into it.  When it is used up, nothing is read.
So no number of such processes can take more than a hundredth of the loop's time for
long.

What a busy machine costs is no fault of the file: else the stock would be used up
there, and nothing be read for minutes.  A read costs what the other process can cause.
That is the thread's processor time; or if the thread was blocked, as by that lock, all
the time from its first step to its last one.  A thread that only waits for a processor
is not blocked.
"""

import resource
import threading
import time
from pathlib import Path

from vhostpci_shared import quiet_thread

LIMIT = 0.5
"""Seconds to wait at most; a QEMU with hundreds of mappings takes a millisecond."""
QUICK = 0.01
"""A read that costs so many seconds takes nothing of the stock."""
STOCK = 1.0
REFILL = 0.01
"""Seconds that flow into the stock in each second."""
LONGEST = 1 << 20
"""Bytes of the longest file: about ten thousand mappings."""


class _Stock:
    """The time that may still be spent on slow reads."""

    def __init__(self) -> None:
        self.refill()

    def refill(self) -> None:
        """Fill it up."""
        self._left, self._counted = STOCK, time.monotonic()

    def left(self) -> float:
        """Return the seconds that are there now."""
        now = time.monotonic()
        self._left = min(STOCK, self._left + (now - self._counted) * REFILL)
        self._counted = now
        return self._left

    def spend(self, seconds: float) -> None:
        """Take what a read has cost."""
        if seconds > QUICK:
            self._left -= seconds


stock = _Stock()


def read_with_limit(path: Path) -> str | None:
    """Return the contents; None if we may not read it, or it takes too long."""
    limit = min(LIMIT, stock.left())
    if limit <= QUICK:
        return None
    reader = _Reader(path)
    # A daemon thread: one that is stuck in the kernel must not keep our process from
    # ending.  The kernel lets it go when the process that it asks about ends.
    thread = threading.Thread(target=reader.run, daemon=True)
    quiet_thread.start(thread)
    thread.join(limit)
    stock.spend(reader.cost())
    return reader.text


class _Reader:
    """Reads a file in another thread, and tells what that has cost."""

    def __init__(self, path: Path) -> None:
        self.text: str | None = None
        """None if there is none, or none yet."""
        self._path = path
        self._began: float | None = None
        self._cost: float | None = None

    def run(self) -> None:
        """Read the file."""
        self._began = time.monotonic()
        used, blocked = time.thread_time(), _times_blocked()
        self.text = _read(self._path)
        if _times_blocked() > blocked:
            self._cost = time.monotonic() - self._began
        else:
            self._cost = time.thread_time() - used

    def cost(self) -> float:
        """Return how many seconds of the stock the read has cost until now."""
        if self._began is None:
            return 0.0  # the thread has had no processor
        if self._cost is None:
            return time.monotonic() - self._began
        return self._cost


def _times_blocked() -> int:
    """Return how often this thread has given its processor up to wait for something."""
    # System calls: getrusage.
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST)
    except OSError:
        return None
    return data.decode(errors="replace") if len(data) < LONGEST else None
