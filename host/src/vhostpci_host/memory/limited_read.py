# SPDX-License-Identifier: Apache-2.0
"""Reads a file of /proc that another process can make slow, or endless to read.

Theory of operation.  For /proc/PID/maps the kernel takes a lock of that process, which
the process holds while it maps memory, and prints a line for each mapping.  A hostile
process may have 65530 of them, which take some tens of milliseconds.  The daemon has
one loop for all devices, and must not stand still for that long again and again.

So another thread reads, and only so many bytes.  The loop waits for it, but not longer
than `LIMIT`.  After a read that took longer, nothing is read for `PAUSE` seconds: no
number of such processes can take more than a hundredth of the loop's time.
"""

import threading
import time
from pathlib import Path

LIMIT = 0.1
"""Seconds to wait; a QEMU with hundreds of mappings takes less than a millisecond."""
PAUSE = 10.0
"""Seconds after a read that took too long in which nothing is read."""
LONGEST = 1 << 20
"""Bytes of the longest file: about ten thousand mappings."""

_pause_until = 0.0


def read_with_limit(path: Path) -> str | None:
    """Return the contents; None if we may not read it, or it takes too long."""
    global _pause_until
    if time.monotonic() < _pause_until:
        return None
    found: list[str] = []
    # A daemon thread: one that is stuck in the kernel must not keep our process from
    # ending.  The kernel lets it go when the process that it asks about ends.
    thread = threading.Thread(target=_read, args=(path, found), daemon=True)
    thread.start()
    thread.join(LIMIT)
    if thread.is_alive():
        _pause_until = time.monotonic() + PAUSE
        return None
    return found[0] if found else None


def _read(path: Path, found: list[str]) -> None:
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST)
    except OSError:
        return
    if len(data) < LONGEST:
        found.append(data.decode(errors="replace"))
