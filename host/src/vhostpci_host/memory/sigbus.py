# SPDX-License-Identifier: Apache-2.0
"""Map a file so that the daemon survives when another process truncates the file.

Theory of operation.  Any process that can open the file can truncate it; a slave
process gets the file from us.  A load or store beyond the new end raises SIGBUS, which
ends the process.  A check before the access does not help: the truncation may happen
between the check and the access.

So we install a guard, a handler for SIGBUS, which compares the faulting address with
our mappings.  If a mapping contains it, the handler replaces the mapping by anonymous
zero pages, sets `lost`, and returns.  The CPU then repeats the instruction, which
succeeds on private memory.  The owner polls `lost`, restores the file's size, and
calls `map_again`, which maps the file at the same address; the owner must then write
the file's contents again.  For an address in no mapping of ours the handler puts the
previous action back (usually the default one) and returns: the repeated instruction
faults once more, and ends the process as it would have without us.

The handler is Python, called by libffi in the signal's frame.  That is sound because
this SIGBUS is synchronous.  The mapping is accessed through memoryview objects only,
so the instruction that faults is CPython's own load or store of a view
(`unpack_single`, `memmove`), in a thread that holds the GIL and no lock of the C
library; the interpreter is as consistent there as around any call from C into Python.
No instruction is skipped, and no stack is unwound.  A system call that reads or writes
the mapping for us fails with EFAULT and raises no signal.

x86-64 with glibc or musl: `struct sigaction` and `siginfo_t` are laid out below.
"""

import contextlib
import ctypes
import mmap
import os
import signal
from typing import ClassVar

from ..fds import Fd

MAP_FIXED, MAP_NORESERVE = 0x10, 0x4000  # <linux/mman.h>; not in Python's mmap
SA_SIGINFO = 4
# MAP_FIXED replaces the old pages in one step: no other thread can map something else
# into the gap, and every view keeps its address.
_PROTECTION = mmap.PROT_READ | mmap.PROT_WRITE
_ZERO_PAGES = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE
_SHARED = mmap.MAP_SHARED | MAP_FIXED


class _SignalInfo(ctypes.Structure):
    """The first fields of `siginfo_t` for a signal with an address (sigaction(2))."""

    _fields_: ClassVar = [
        ("number", ctypes.c_int),
        ("errno", ctypes.c_int),
        ("code", ctypes.c_int),
        ("address", ctypes.c_size_t),
    ]


_Handler = ctypes.CFUNCTYPE(
    None, ctypes.c_int, ctypes.POINTER(_SignalInfo), ctypes.c_void_p
)


class _Action(ctypes.Structure):
    """The C library's `struct sigaction`, which differs from the kernel's."""

    _fields_: ClassVar = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


# PyDLL keeps the GIL during a call.  If the handler released it, another thread could
# release the view whose load or store is about to be repeated.
_libc = ctypes.PyDLL(None, use_errno=True)
_sigaction = _libc.sigaction
_mmap = _libc.mmap
_mmap.restype = ctypes.c_size_t
# Python's mmap module cannot map at a given address.
_mmap.argtypes = [
    *(ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
    ctypes.c_long,
]
_FAILED = ctypes.c_size_t(-1).value

# A tuple that is replaced as a whole: the handler may run in another thread in the
# middle of `_register` or `_unregister`, and sees either the old tuple or the new one.
_maps: tuple["GuardedMapping", ...] = ()
_previous_action = _Action()
_installed = False


class GuardedMapping:
    """A shared mapping of part of a file, which survives the file's truncation.

    Args:
        file: stays the caller's, who keeps it open until `close`.
        offset: of the first byte, a multiple of the page size of the file.
        length: in bytes, a multiple of that page size.

    Raises:
        OSError, ValueError: the range of the file cannot be mapped.
    """

    def __init__(self, file: Fd, *, offset: int, length: int) -> None:
        self.lost = False
        """Whether the mapping shows private zero pages, not the file any more."""
        self._file = file
        self._offset = offset
        self._length = length
        self._map = mmap.mmap(file.fileno(), length, offset=offset)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        _register(self)

    def view(self) -> memoryview:
        """Return the mapped bytes; release every view before `close`."""
        return memoryview(self._map)

    def covers(self, address: int) -> bool:
        """Return whether `address` lies in the mapping."""
        return self._address <= address < self._address + self._length

    def replace_with_zeros(self) -> bool:
        """Replace the mapping by private zero pages; return whether mmap() did it."""
        self.lost = True
        # All of the mapping, not only the page that faulted: the owner writes all of
        # the contents again after a loss.
        made = _mmap(self._address, self._length, _PROTECTION, _ZERO_PAGES, -1, 0)
        return bool(made == self._address)

    def map_again(self) -> None:
        """Map the file again at the same address, so that existing views show it.

        Raises:
            OSError: mmap() failed; the mapping keeps its zero pages.
        """
        file = self._file.fileno()
        made = _mmap(
            self._address, self._length, _PROTECTION, _SHARED, file, self._offset
        )
        if made == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self.lost = False

    def close(self) -> None:
        """Unmap the file, or keep it mapped and guarded while a view exists."""
        # BufferError: `_unregister` is skipped, so that an access through the view that
        # is left cannot end the process either.
        with contextlib.suppress(BufferError):
            self._map.close()
            _unregister(self)


def _register(one: GuardedMapping) -> None:
    global _maps, _installed
    _maps = (*_maps, one)
    if not _installed:
        _installed = True
        ours = _Action(ctypes.cast(_on_sigbus, ctypes.c_void_p), flags=SA_SIGINFO)
        _sigaction(signal.SIGBUS, ctypes.byref(ours), ctypes.byref(_previous_action))


def _unregister(one: GuardedMapping) -> None:
    global _maps
    _maps = tuple(other for other in _maps if other is not one)


def _handle(number: int, info: "ctypes._Pointer[_SignalInfo]", context: int) -> None:
    """Handle SIGBUS: replace the mapping that faulted, or restore the old action."""
    global _installed
    address = info.contents.address
    for one in _maps:
        if one.covers(address) and one.replace_with_zeros():
            return
    # Not our address, or mmap() failed.  Returning with our handler in place would
    # repeat the instruction and this handler forever.
    _sigaction(signal.SIGBUS, ctypes.byref(_previous_action), None)
    _installed = False


_on_sigbus = _Handler(_handle)  # a global: the kernel keeps its address
