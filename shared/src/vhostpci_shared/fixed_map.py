# SPDX-License-Identifier: Apache-2.0
"""Map memory at an address that the caller names, which Python's mmap module cannot.

What is mapped there goes, in one step: no other thread can map something else into the
gap, and every view of the range keeps its address and shows the new memory.
"""

import ctypes
import mmap
import os

MAP_FIXED, MAP_NORESERVE = 0x10, 0x4000  # <linux/mman.h>; not in Python's mmap
_PROTECTION = mmap.PROT_READ | mmap.PROT_WRITE
_ZEROS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE

# PyDLL keeps the GIL during a call: a handler of SIGBUS may be the caller, and if it
# released the GIL, another thread could release the view whose load or store is about
# to be repeated.
# System calls: mmap(NO_EXEC).
_libc = ctypes.PyDLL(None, use_errno=True)
_mmap = _libc.mmap
_mmap.restype = ctypes.c_size_t
_mmap.argtypes = [
    *(ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
    ctypes.c_long,
]


def map_zeros(address: int, length: int) -> bool:
    """Map private zero pages at `address`; return whether the kernel did."""
    return bool(_mmap(address, length, _PROTECTION, _ZEROS, -1, 0) == address)


def map_file(address: int, length: int, file: int, offset: int) -> None:
    """Map a file at `address`, shared and writable.

    Raises:
        OSError: the kernel does not map it; what was there stays.
    """
    flags = mmap.MAP_SHARED | MAP_FIXED
    if _mmap(address, length, _PROTECTION, flags, file, offset) != address:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
