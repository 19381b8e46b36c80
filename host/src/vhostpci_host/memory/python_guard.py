# SPDX-License-Identifier: Apache-2.0
"""Guards against SIGBUS without C, for a machine that had no compiler.

`PythonGuards` has the functions of shared/memory/guard.c.  That file has the theory of
operation; here is what differs.

The handler is Python, called by libffi in the signal's frame.  That is sound because
this SIGBUS is synchronous.  The daemon accesses its mapping through memoryview objects
only, so the instruction that faults is CPython's own load or store of a view
(`unpack_single`, `memmove`), in a thread that holds the GIL and no lock of the C
library; the interpreter is as consistent there as around any call from C into Python.
No instruction is skipped, and no stack is unwound.  A system call that reads or writes
the mapping for us fails with EFAULT and raises no signal.  (The agent could not use
this: its workers access windows without the GIL.)

`struct sigaction` and `siginfo_t` are laid out below as glibc and musl have them on
64-bit machines.
"""

import ctypes
import signal
from typing import ClassVar

from vhostpci_shared import fixed_map

SA_SIGINFO = 4


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


_sigaction = ctypes.PyDLL(None).sigaction


class _Guard:
    """A range of addresses, and whether what was mapped there is lost."""

    def __init__(self, address: int, size: int) -> None:
        self.address = address
        self.size = size
        self.lost = False

    def contains(self, address: int) -> bool:
        return self.address <= address < self.address + self.size


class PythonGuards:
    """All guards of a process; a process has one of these, and keeps it."""

    def __init__(self) -> None:
        # Replaced as a whole, and not changed: the handler may run in another thread
        # in the middle of `guard_open` or `guard_close`, and sees the old or the new.
        self._guards: dict[int, _Guard] = {}
        self._next = 0
        self._installed = False
        self._before = _Action()
        # The kernel keeps its address, so this object must stay, too.
        self._handler = _Handler(self._handle)

    def guard_open(self, address: int, size: int, fd: int) -> int:
        """Guard a mapping; return the guard's number.  There is no eventfd."""
        assert fd == -1
        number, self._next = self._next, self._next + 1
        self._guards = {**self._guards, number: _Guard(address, size)}
        if not self._installed:
            self._installed = True
            ours = _Action(ctypes.cast(self._handler, ctypes.c_void_p))
            ours.flags = SA_SIGINFO
            _sigaction(signal.SIGBUS, ctypes.byref(ours), ctypes.byref(self._before))
        return number

    def guard_close(self, number: int) -> int:
        """Guard a mapping no longer."""
        self._guards = {key: one for key, one in self._guards.items() if key != number}
        return 0

    def guard_lost(self, number: int) -> int:
        """Return 1 if the guarded memory is lost, else 0."""
        return int(number in self._guards and self._guards[number].lost)

    def _handle(
        self, number: int, info: "ctypes._Pointer[_SignalInfo]", context: int
    ) -> None:
        address = info.contents.address
        for one in self._guards.values():
            if one.contains(address):
                one.lost = True
                if fixed_map.map_zeros(one.address, one.size):
                    return
        # Not our address, or mmap() failed.  Returning with our handler in place would
        # repeat the instruction and this handler forever.
        _sigaction(signal.SIGBUS, ctypes.byref(self._before), None)
        self._installed = False
