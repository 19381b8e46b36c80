# SPDX-License-Identifier: Apache-2.0
"""Barriers: the order in which another process or VM sees what Python stores.

Python has none.  A store or a load of an aligned word by memoryview is one instruction,
and whether others see two of them in the order of the program is up to the processor:
x86-64 keeps the order of two stores, of two loads, and of a load and a later store.
Most others do not.

So the metadata (access.py) and the doorbells have a barrier wherever their order
matters, and the barriers are C (`shared/memory/barrier.c`).  Without a compiler there
is no C: on x86-64 nothing is needed in its place, and any other machine is refused.

This is the only module that imports the barriers of ``_memory``.
"""

import os
from functools import cache
from typing import Protocol

from .errors import Coded


class NoBarriers(Coded):
    """This machine needs barriers, and has none; the text says what to do."""


class Barriers(Protocol):
    """What orders the loads and stores around it; shared/memory/barrier.c says how."""

    def barrier_acquire(self) -> None:
        """Do the loads before this before all that follows."""

    def barrier_release(self) -> None:
        """Do all that is before this before the stores that follow."""

    def barrier_full(self) -> None:
        """Let others see all stores before this before any access that follows."""


class _Ordered:
    """Stands for the barriers on x86-64, which keeps the order that we need.

    It does not keep that of a store and a later load.  Nothing here relies on it: the
    only `barrier_full` is before the store to a doorbell.
    """

    def barrier_acquire(self) -> None: ...
    def barrier_release(self) -> None: ...
    def barrier_full(self) -> None: ...


@cache
def installed_barriers() -> Barriers:
    """Return the barriers of this machine.

    Raises:
        NoBarriers: it needs them, and the C is not installed.
    """
    try:
        from ._memory import lib
    except ImportError:
        machine = os.uname().machine
        if machine == "x86_64":
            return _Ordered()
        raise NoBarriers(
            f"this machine is {machine}, whose processor may show our stores to others "
            "in another order, and vhostpci-shared was installed without the C that "
            "prevents it: install a C compiler and Python's headers (Debian: gcc, "
            "libc6-dev, python3-dev), then install vhostpci-shared again",
            code="S001",
        ) from None
    return lib
