# SPDX-License-Identifier: Apache-2.0
"""Make a filter of system calls and give it to the kernel, by way of libseccomp.

Debian has that library on each machine, since apt needs it.  Its Python modules are no
dependency of ours: one comes only as a package of the distribution, and both are little
more than the declarations below.
"""

import ctypes
import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass

LIBRARY = "libseccomp.so.2"

ALLOW, LOG, KILL_PROCESS = 0x7FFF0000, 0x7FFC0000, 0x80000000  # <seccomp.h>
_ERRNO = 0x00050000
_BAD_ARCHITECTURE, _ALL_THREADS, _RAW_ERRORS = 2, 4, 9  # enum scmp_filter_attr
_MASKED_EQ = 7  # enum scmp_compare
_UNKNOWN = -1
_ARCHITECTURES = {0xC000003E: "x86_64", 0xC00000B7: "aarch64"}  # <linux/audit.h>


class Unavailable(Exception):
    """There can be no filter on this machine; the text says why."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What one argument of a system call must be: `argument & mask == value`."""

    argument: int
    mask: int
    value: int


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of a system call that meets a condition, or of each such call."""

    action: int
    call: str
    condition: Condition | None = None


class _Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp` of <seccomp.h>."""

    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("mask", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
    )


def failing_with(number: int) -> int:
    """Return the action that has a system call fail with this errno."""
    return _ERRNO | number


def install(default: int, rules: Iterable[Rule]) -> None:
    """Filter the system calls of all threads of this process from now on.

    Args:
        default: what becomes of a call that meets no rule, and of one by an interface
            of another architecture (32 bits, x32).
        rules: those of calls that this architecture does not have are left out.

    Raises:
        Unavailable: the library or the kernel does not do it; nothing is filtered.
    """
    library = _library()
    context = library.seccomp_init(default)
    if not context:
        raise Unavailable(f"{LIBRARY} makes no filter")
    try:
        _fill(library, context, default, rules)
        _check(library.seccomp_load(context), "the kernel does not take it")
    finally:
        library.seccomp_release(context)


def _fill(
    library: ctypes.CDLL, context: int, default: int, rules: Iterable[Rule]
) -> None:
    for attribute, value in ((_BAD_ARCHITECTURE, default), (_ALL_THREADS, 1)):
        done = library.seccomp_attr_set(context, attribute, value)
        _check(done, f"{LIBRARY} knows no attribute {attribute}")
    # Only for better words of `seccomp_load`; before version 2.5 it is not there.
    library.seccomp_attr_set(context, _RAW_ERRORS, 1)
    for rule in rules:
        _add(library, context, rule)


def _add(library: ctypes.CDLL, context: int, rule: Rule) -> None:
    number = library.seccomp_syscall_resolve_name(rule.call.encode())
    if number == _UNKNOWN:
        raise Unavailable(f"{LIBRARY} is too old: it knows no {rule.call}()")
    if number < 0:
        return  # another architecture has it: aarch64 has no poll(), only ppoll()
    condition = rule.condition
    count, comparison = 0, _Comparison()
    if condition is not None:
        count = 1
        comparison = _Comparison(
            condition.argument, _MASKED_EQ, condition.mask, condition.value
        )
    done = library.seccomp_rule_add_array(
        context, rule.action, number, count, ctypes.byref(comparison)
    )
    _check(done, f"{LIBRARY} refuses a rule for {rule.call}()")


def _library() -> ctypes.CDLL:
    """Load the library.

    Raises:
        Unavailable: it is not there, or this architecture was never tried.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise Unavailable(f"{LIBRARY} is not installed (Debian: libseccomp2)") from None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    context = ctypes.c_void_p
    library.seccomp_attr_set.argtypes = [context, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_rule_add_array.argtypes = [
        *(context, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint),
        ctypes.POINTER(_Comparison),
    ]
    library.seccomp_load.argtypes = library.seccomp_release.argtypes = [context]
    library.seccomp_arch_native.restype = ctypes.c_uint32
    # The names of system calls that a program needs are not the same everywhere.
    if library.seccomp_arch_native() not in _ARCHITECTURES:
        there = " and ".join(_ARCHITECTURES.values())
        raise Unavailable(f"there is a list of system calls for {there} only")
    return library


def _check(result: int, what: str) -> None:
    if result == -errno.ECANCELED:
        raise Unavailable(what)
    if result < 0:
        raise Unavailable(f"{what}: {os.strerror(-result)}")
