# SPDX-License-Identifier: Apache-2.0
"""A mapping of a file that somebody else may cut, which does not kill us.

Theory of operation.  Whoever may open the file can truncate it, a slave process that
was handed it included.  A load or store to what is gone then raises SIGBUS, which
ends a process.  No check before the access helps: the cut may come in between.

So a handler for SIGBUS looks whether the address lies in one of our mappings.  If so
it puts anonymous zero pages in the place of the mapping, notes that, and returns: the
instruction is made again, and succeeds, on memory that nobody else sees.  The owner
looks at `lost` now and then, makes the file whole, and has it mapped again, at the
same address, by `renew`; all that the file held is to be written anew.  Any other
address is none of our business: what was there before us is put back (the default
action, as a rule), and the instruction made again ends the process as it would have.

The handler is Python, called by libffi in the signal's frame.  That is sound for this
signal, though it would not be for any: it is synchronous.  The mapping is only ever
touched through memoryview objects, so the instruction that faults belongs to CPython's
own load or store of a view (`unpack_single`, `memmove`), in a thread that holds the
GIL and no lock of the C library; the interpreter is as consistent there as around any
call from C into Python.  Nothing is ever skipped or unwound.  System calls that read or
write the mapping for us give EFAULT and raise no signal.

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
_PROTECTION = mmap.PROT_READ | mmap.PROT_WRITE
_BLANK = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE
_SHARED = mmap.MAP_SHARED | MAP_FIXED


class _Info(ctypes.Structure):
    """The head of `siginfo_t`, for a signal that has an address (sigaction(2))."""

    _fields_: ClassVar = [
        ("number", ctypes.c_int),
        ("errno", ctypes.c_int),
        ("code", ctypes.c_int),
        ("address", ctypes.c_size_t),
    ]


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.POINTER(_Info), ctypes.c_void_p)


class _Action(ctypes.Structure):
    """`struct sigaction`, as the C library has it."""

    _fields_: ClassVar = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


# PyDLL keeps the GIL: no other thread runs while the handler does its work.
_libc = ctypes.PyDLL(None, use_errno=True)
_sigaction = _libc.sigaction
_mmap = _libc.mmap
_mmap.restype = ctypes.c_size_t
_mmap.argtypes = [
    *(ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
    ctypes.c_long,
]
_FAILED = ctypes.c_size_t(-1).value

_maps: tuple["SharedMap", ...] = ()
_before = _Action()
_installed = False


class SharedMap:
    """Bytes of a file, mapped and shared.

    Args:
        file: stays the caller's, and open for as long as this is.
        offset: of the first byte, a multiple of the file's page.
        length: a multiple of it, too.

    Raises:
        OSError, ValueError: it cannot be mapped.
    """

    def __init__(self, file: Fd, *, offset: int, length: int) -> None:
        self.lost = False
        """Whether some of it was gone when it was touched: what we see is our own."""
        self._file = file
        self._offset = offset
        self._length = length
        self._map = mmap.mmap(file.fileno(), length, offset=offset)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        _register(self)

    def view(self) -> memoryview:
        """Return the bytes; released before `close`, they go with it."""
        return memoryview(self._map)

    def covers(self, address: int) -> bool:
        """Whether an address lies in it."""
        return self._address <= address < self._address + self._length

    def blank(self) -> bool:
        """Put zero pages of our own in its place; say whether that worked."""
        self.lost = True
        made = _mmap(self._address, self._length, _PROTECTION, _BLANK, -1, 0)
        return bool(made == self._address)

    def renew(self) -> None:
        """Map the file again, at the same address; views stay good.

        Raises:
            OSError: that is not possible; it is as it was.
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
        """Let go of it, unless somebody still has a view."""
        with contextlib.suppress(BufferError):
            self._map.close()
            _unregister(self)


def _register(one: SharedMap) -> None:
    global _maps, _installed
    _maps = (*_maps, one)
    if not _installed:
        _installed = True
        ours = _Action(ctypes.cast(_on_sigbus, ctypes.c_void_p), flags=SA_SIGINFO)
        _sigaction(signal.SIGBUS, ctypes.byref(ours), ctypes.byref(_before))


def _unregister(one: SharedMap) -> None:
    global _maps
    _maps = tuple(other for other in _maps if other is not one)


def _handle(number: int, info: "ctypes._Pointer[_Info]", context: int) -> None:
    """Mend what SIGBUS is about, or have it do what it does without us."""
    global _installed
    address = info.contents.address
    for one in _maps:
        if one.covers(address) and one.blank():
            return
    _sigaction(signal.SIGBUS, ctypes.byref(_before), None)
    _installed = False


_on_sigbus = _Handler(_handle)  # kept: the kernel has its address
