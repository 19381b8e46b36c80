# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: ours, and the one to which another program moved a TAP."""

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_ONLY_IN_THE_FIRST = Path("/proc/sys/net/core/netdev_max_backlog")
"""A setting of the whole machine, which the kernel shows in its first namespace."""
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def label() -> str:
    """Return a text that tells the namespace of this thread from others of the machine.

    It is empty in the namespace that the kernel starts with, since the number of that
    one may change with the kernel.
    """
    if _ONLY_IN_THE_FIRST.exists():
        return ""
    return str(os.stat("/proc/thread-self/ns/net").st_ino)


def is_ours(namespace: int) -> bool:
    """Whether a descriptor is the network namespace of this thread."""
    return os.path.samestat(os.fstat(namespace), os.stat("/proc/thread-self/ns/net"))


def run_in(namespace: int, action: Callable[[], T]) -> T:
    """Return what `action` returns in a network namespace, or raise what it raises.

    Args:
        namespace: a descriptor of the network namespace.
        action: it runs in another thread.

    Raises:
        OSError: we may not enter the namespace.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            if _libc.setns(namespace, _CLONE_NEWNET):
                error = ctypes.get_errno()
                raise OSError(error, f"setns: {os.strerror(error)}")
            results.append(action())
        except BaseException as error:
            errors.append(error)

    # A namespace belongs to a thread.  The main thread would not be sure to come back
    # to its own (setns may fail), so it never leaves it.
    thread = threading.Thread(target=run, name="namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
