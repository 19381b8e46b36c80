# SPDX-License-Identifier: Apache-2.0
"""A network namespace for one test."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)} (the test needs root)")


@contextmanager
def private_network() -> Iterator[None]:
    """Move this thread, and what it starts, into a new and empty namespace.

    Raises:
        OSError: this process may not make namespaces.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        try:
            yield
        finally:
            _check(_libc.setns(home, CLONE_NEWNET), "setns")
    finally:
        os.close(home)


def ip(*arguments: str) -> str:
    """Run ip(8) in this thread's namespace; return what it prints."""
    done = subprocess.run(
        ["ip", *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout
