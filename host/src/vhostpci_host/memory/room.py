# SPDX-License-Identifier: Apache-2.0
"""Whether the masters' memory fits into its file systems: all arenas, not each one.

An arena is sparse: a page takes memory when its master first touches it.  If there is
none left then, the master's QEMU is killed by SIGBUS, which no daemon can prevent any
more.  So the daemon warns of that at its start, when a device is added, and when other
programs have taken the room meanwhile; with `prealloc` it takes the memory at once
instead, and fails if it cannot.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Promise:
    """What one arena may still take of its file system."""

    name: str
    directory: Path
    file_system: int
    """Its st_dev."""
    missing: int
    """Bytes of the master's memory that have no memory behind them yet."""
    free: int
    """Bytes that the file system can still give."""


def promise(name: str, directory: Path, fd: int, ram: int) -> Promise:
    """Return what the arena `fd` may still take for `ram` bytes of RAM."""
    # System calls: fstatfs.
    info, system = os.fstat(fd), os.fstatvfs(fd)
    # st_blocks counts 512 bytes, whatever the file system's own block is (stat(2)).
    missing = max(0, ram - info.st_blocks * 512)
    free = system.f_bavail * system.f_frsize
    return Promise(name, directory, info.st_dev, missing, free)


def shortages(promises: Iterable[Promise]) -> dict[int, str]:
    """Return a warning for each file system that cannot keep all its promises.

    The key is the file system's number.
    """
    systems: dict[int, list[Promise]] = {}
    for one in promises:
        systems.setdefault(one.file_system, []).append(one)
    return {
        system: _warning(arenas)
        for system, arenas in systems.items()
        if sum(one.missing for one in arenas) > arenas[0].free
    }


def _warning(arenas: list[Promise]) -> str:
    missing = sum(one.missing for one in arenas)
    directory = arenas[0].directory
    return (
        f"{directory} has {arenas[0].free >> 20} MiB free, and the memory of "
        f"{', '.join(one.name for one in arenas)} may take {missing >> 20} MiB more: a "
        "VM that touches memory when none is left is killed; enlarge it (mount -o "
        "remount,size=), or use a separate tmpfs for --memory-dir, and --prealloc"
    )
