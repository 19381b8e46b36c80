# SPDX-License-Identifier: Apache-2.0
"""What kind of file system a file is on, found without asking that file system.

A front-end may send the descriptor of any file.  A call to a file system can wait for
as long as the file system likes: FUSE asks a process of the user who mounted it, NFS a
server that may be down.  That includes fstat() and pread(), and in the daemon's one
thread such a wait stops all devices.  What is called here is answered by the kernel's
own tables.
"""

import fcntl

from ..fds import Fd

MEMORY_FILES = "a memfd, or a file on tmpfs or hugetlbfs"


def is_memory_file(file: Fd) -> bool:
    """Return whether `file` is a memfd, or is on tmpfs or hugetlbfs."""
    # Only these have seals.  For every other file the kernel refuses the question by
    # itself (EINVAL), and no file system can answer it for its own files
    # (memfd_file_seals_ptr() in Linux, mm/memfd.c).
    try:
        # System calls: fcntl(F_GET_SEALS).
        fcntl.fcntl(file.fileno(), fcntl.F_GET_SEALS)
    except OSError:
        return False
    return True


def filesystem(file: Fd) -> str:
    """Return the type of the file system that `file` is on, as mount(8) names it.

    "unknown" for a mount of another mount namespace, or one of the kernel's own.
    """
    wanted = _mount_id(file)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            if line.split(maxsplit=1)[0] == wanted:
                return line.partition(" - ")[2].split()[0]
    return "unknown"


def _mount_id(file: Fd) -> str:
    with open(f"/proc/self/fdinfo/{file.fileno()}", encoding="ascii") as lines:
        for line in lines:
            name, _, number = line.partition(":")
            if name == "mnt_id":
                return number.strip()
    return ""
