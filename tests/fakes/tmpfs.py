# SPDX-License-Identifier: Apache-2.0
"""A small tmpfs for one test, which can be filled."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BLOCK = bytes(1 << 16)


@contextmanager
def mounted(place: Path, megabytes: int) -> Iterator[Path]:
    """Mount a tmpfs of that size at `place` while the block runs; needs root."""
    place.mkdir(exist_ok=True)
    size = f"size={megabytes}m,mode=0755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", place], check=True)
    try:
        yield place
    finally:
        # Lazily: a test that failed may have left a file open.
        subprocess.run(["umount", "-l", place], check=True)


def fill(directory: Path) -> Path:
    """Fill a tmpfs up to its last page; return the file to remove to empty it."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (len(_BLOCK), 4096):
            try:
                while True:
                    file.write(_BLOCK[:size])
            except OSError:
                continue
    assert os.statvfs(directory).f_bavail == 0
    return filler
