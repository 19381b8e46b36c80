# SPDX-License-Identifier: Apache-2.0
"""Eventfds that never block."""

import os
from contextlib import suppress


def new_eventfd() -> int:
    """Return a new eventfd that never blocks."""
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def drain(fd: int) -> bool:
    """Take what an eventfd holds; return whether it held anything."""
    with suppress(BlockingIOError):
        os.eventfd_read(fd)
        return True
    return False


def signal(fd: int) -> None:
    """Add one to an eventfd; one that is full needs no more."""
    with suppress(BlockingIOError):
        os.eventfd_write(fd, 1)
