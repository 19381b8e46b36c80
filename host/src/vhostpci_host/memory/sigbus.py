# SPDX-License-Identifier: Apache-2.0
"""Map a file so that the daemon survives when another process truncates the file.

Theory of operation.  Any process that can open the file can truncate it; a slave
process gets the file from us.  A load or store beyond the new end raises SIGBUS, which
ends the process.  A check before the access does not help: the truncation may happen
between the check and the access.

So each mapping has a guard: a handler of SIGBUS replaces the mapping by anonymous zero
pages, notes that it is lost, and the CPU repeats the instruction, which succeeds on
private memory.  The owner polls `lost`, restores the file's size, and calls
`map_again`, which maps the file at the same address; the owner must then write the
file's contents again.

The handler is the C that the agent has, too (`shared/memory/guard.c`).  A machine
without a compiler has no C; there it is the one in `python_guard.py`.
"""

import contextlib
import ctypes
import errno
import mmap
from typing import Protocol

from vhostpci_shared import fixed_map

from ..fds import Fd
from .python_guard import PythonGuards


class Guards(Protocol):
    """Handlers of SIGBUS; shared/memory/guard.c documents the functions."""

    def guard_open(self, address: int, size: int, fd: int) -> int: ...
    def guard_close(self, number: int) -> int: ...
    def guard_lost(self, number: int) -> int: ...


def installed_guards() -> Guards:
    """Return the guards in C, or those in Python where there was no compiler."""
    try:
        from vhostpci_shared._memory import lib
    except ImportError:
        return PythonGuards()
    return lib


_GUARDS = installed_guards()


class GuardedMapping:
    """A shared mapping of part of a file, which survives the file's truncation.

    Args:
        file: stays the caller's, who keeps it open until `close`.
        offset: of the first byte, a multiple of the page size of the file.
        length: in bytes, a multiple of that page size.
        guards: the process's own; tests have others.

    Raises:
        OSError, ValueError: the range of the file cannot be mapped.
    """

    def __init__(
        self, file: Fd, *, offset: int, length: int, guards: Guards = _GUARDS
    ) -> None:
        self._file = file
        self._offset = offset
        self._length = length
        self._guards = guards
        self._replaced = False
        self._map = mmap.mmap(file.fileno(), length, offset=offset)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        try:
            self._guard = self._open_guard()
        except BaseException:
            self._map.close()
            raise

    @property
    def lost(self) -> bool:
        """Whether the mapping shows private zero pages, not the file any more."""
        return self._replaced or self._guards.guard_lost(self._guard) == 1

    def view(self) -> memoryview:
        """Return the mapped bytes; release every view before `close`."""
        return memoryview(self._map)

    def replace_with_zeros(self) -> bool:
        """Replace the mapping by private zero pages; return whether mmap() did it."""
        self._replaced = True
        return fixed_map.map_zeros(self._address, self._length)

    def map_again(self) -> None:
        """Map the file again at the same address, so that existing views show it.

        Raises:
            OSError: mmap() failed; the mapping keeps its zero pages.
        """
        # A new guard, since one that has seen a loss stays lost.  It is there before
        # the file is: a file that is cut at once is lost again, and known to be.
        self._replaced = True
        lost, self._guard = self._guard, self._open_guard()
        self._guards.guard_close(lost)
        fixed_map.map_file(
            self._address, self._length, self._file.fileno(), self._offset
        )
        self._replaced = False

    def close(self) -> None:
        """Unmap the file, or keep it mapped and guarded while a view exists."""
        # BufferError: the guard is kept, so that an access through the view that is
        # left cannot end the process either.
        with contextlib.suppress(BufferError):
            if not self._map.closed:
                self._map.close()
                # Only once: later the number may be another mapping's.
                self._guards.guard_close(self._guard)

    def _open_guard(self) -> int:
        number = self._guards.guard_open(self._address, self._length, -1)
        if number == -errno.ENOSPC:
            raise OSError(
                errno.ENOSPC, "the daemon has 4096 arenas, it can have no more"
            )
        if number < 0:
            raise OSError(-number, f"cannot guard {self._length} bytes against SIGBUS")
        return number
