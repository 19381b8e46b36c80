# SPDX-License-Identifier: Apache-2.0
"""Huge pages for a test, given back after it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MOUNTED = (
    *("unshare", "--mount", "sh", "-c"),
    "mount -t tmpfs none /mnt && mkdir /mnt/huge && "
    'mount -t hugetlbfs none /mnt/huge && exec "$@"',
    "sh",
)
"""What goes before a command that needs a hugetlbfs; other programs do not see it."""
POOL = Path("/proc/sys/vm/nr_hugepages")


def free() -> int:
    """Return how many huge pages of the default size are free."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("HugePages_Free:"):
            return int(line.split()[1])
    return 0


@contextmanager
def reserved(count: int) -> Iterator[None]:
    """Make sure that so many are free; give what was added back at the end."""
    before = POOL.read_text()
    missing = count - free()
    if missing > 0:
        POOL.write_text(str(int(before) + missing))
    try:
        assert free() >= count, f"the kernel finds no {count} huge pages"
        yield
    finally:
        POOL.write_text(before)
