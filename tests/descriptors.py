# SPDX-License-Identifier: Apache-2.0
"""The file descriptors that a process has open, to find those that it leaks."""

import os
from pathlib import Path


def open_descriptors(pid: int | None = None) -> dict[int, str]:
    """Return the descriptors of a process, and what each is; of this one if not given.

    A socket, an eventfd or a deleted file has a number of the kernel in its name where
    the kernel gives one: `socket:[4711]` is one socket, `anon_inode:[eventfd]` any.
    """
    found = {}
    for entry in Path(f"/proc/{pid or 'self'}/fd").iterdir():
        try:
            found[int(entry.name)] = os.readlink(entry)
        except FileNotFoundError:
            continue  # closed since, as is the one that lists the directory
    return found
