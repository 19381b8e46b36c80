# SPDX-License-Identifier: Apache-2.0
"""What other processes do with a file: map it, or have it open.

All of it is a look at /proc, so it says nothing of processes that we may not look at:
those of other users, unless we are root.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from ..sockets import process_text
from .limited_read import read_with_limit


@dataclass(frozen=True, slots=True)
class _Mapping:
    """One mapping of a file by a process."""

    private: bool
    start: int
    """The offset in the file of its first byte."""
    end: int
    """The offset behind its last byte."""


def mapped_private(pid: int, info: os.stat_result) -> bool:
    """Return whether process `pid` maps the file of `info`, and only privately.

    False where we cannot know: another user runs the process, or `pid` connected for
    the process that maps the file.
    """
    # Both kinds may occur: a process may map parts of its shared memory privately, too.
    found = _mappings(pid, info)
    return bool(found) and all(mapping.private for mapping in found or ())


def mapped_end(pid: int, info: os.stat_result, offset: int) -> int | None:
    """Return where a mapping ends by which process `pid` has both sides of `offset`.

    A QEMU maps its RAM as one piece.  0 if there is no such mapping of the file; None
    where we cannot know.
    """
    found = _mappings(pid, info)
    if found is None:
        return None
    return max((one.end for one in found if one.start < offset < one.end), default=0)


def is_alive(pid: int) -> bool:
    """Return whether there is a process `pid`; not for 0, an unknown one."""
    if pid <= 0:
        return False  # kill() takes such a number for a group of processes
    try:
        # System calls: kill(NO_SIGNAL).
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def users_of(path: Path) -> list[str]:
    """Return the other processes that have the file open, each as `pid N (NAME)`."""
    return [
        process_text(int(process.name))
        for process in Path("/proc").iterdir()
        if process.name.isdecimal()
        and int(process.name) != os.getpid()
        and str(path) in _open_names(process)
    ]


def _mappings(pid: int, info: os.stat_result) -> list[_Mapping] | None:
    """Return the mappings of a file; None if we cannot know."""
    wanted = (f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}", info.st_ino)
    text = read_with_limit(Path(f"/proc/{pid}/maps"))
    if text is None:
        return None
    found = []
    for line in text.splitlines():
        range_, mode, offset, device, inode = line.split(maxsplit=5)[:5]
        if (device, int(inode)) == wanted:
            first, last = (int(part, 16) for part in range_.split("-"))
            start = int(offset, 16)
            end = start + last - first
            found.append(_Mapping(mode[3] == "p", start, end))
    return found


def _open_names(process: Path) -> set[str]:
    """Return the names of what a process has open."""
    # Names, and not what stat() says: a process may have a file on FUSE open, and
    # stat() would wait for that file system.  The kernel itself knows the names.
    names = set()
    # The process may end, or close a file, at any moment; it may be another user's.
    with contextlib.suppress(OSError):
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                # System calls: getdents64, readlink.
                names.add(os.readlink(link))
    return names
