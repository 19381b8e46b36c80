# SPDX-License-Identifier: Apache-2.0
"""Eventfds that never block."""

import os
from contextlib import suppress


def new_eventfd() -> int:
    """Return a new eventfd that never blocks, with the value 0."""
    # NONBLOCK: one thread serves all devices, and an eventfd without a value must not
    # hold it up.
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def drain(fd: int) -> bool:
    """Set an eventfd to 0; return whether it had another value."""
    # One read takes the whole value: several signals count as one.
    with suppress(BlockingIOError):
        os.eventfd_read(fd)
        return True
    return False


def signal(fd: int) -> None:
    """Add one to an eventfd."""
    # EAGAIN means that the value is at its maximum: then the reader has its signal.
    with suppress(BlockingIOError):
        os.eventfd_write(fd, 1)
