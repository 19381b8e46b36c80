# SPDX-License-Identifier: Apache-2.0
"""What a process may do: its user, and its capabilities (capabilities(7))."""

import ctypes
import os
import struct
from collections.abc import Set
from pathlib import Path

# The numbers of linux/capability.h.
CHOWN = 0
DAC_READ_SEARCH = 2
SETPCAP = 8
NET_ADMIN = 12
SYS_MODULE = 16
SYS_PTRACE = 19
SYS_ADMIN = 21
_NAMES = {
    CHOWN: "chown",
    DAC_READ_SEARCH: "dac_read_search",
    SETPCAP: "setpcap",
    NET_ADMIN: "net_admin",
    SYS_MODULE: "sys_module",
    SYS_PTRACE: "sys_ptrace",
    SYS_ADMIN: "sys_admin",
}

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4

# linux/capability.h: version 3 has two words for each set.
_VERSION_3 = 0x20080522
_header = struct.Struct("=Ii")
_sets = struct.Struct("=6I")

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _prctl(option: int, value: int | bytes, what: str) -> None:
    word = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    zero = ctypes.c_ulong(0)
    _check(_libc.prctl(option, word, zero, zero, zero), what)


def permitted() -> frozenset[int]:
    """Return the capabilities that this thread may use."""
    header = _header.pack(_VERSION_3, 0)
    sets = ctypes.create_string_buffer(_sets.size)
    _check(_libc.capget(header, sets), "capget")
    _, low, _, _, high, _ = _sets.unpack(sets.raw)
    bits = low | high << 32
    return frozenset(number for number in range(64) if bits >> number & 1)


def names(capabilities: Set[int]) -> list[str]:
    """Return the names of capabilities, as ``net_admin``; of others the numbers."""
    return [_NAMES.get(number, str(number)) for number in sorted(capabilities)]


def limit(capabilities: Set[int]) -> None:
    """Keep only these of our capabilities, also over an execve(); none comes back.

    It holds for this thread and those that it starts.
    """
    keep = permitted() & capabilities
    # No program that we execute gets more: no setuid bit and no file capability works.
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "no_new_privs")
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, "ambient capabilities")
    bound(keep)
    _set(keep)


def bound(keep: Set[int]) -> None:
    """Take all but these out of the bounding set, if we may.

    What this thread has now, it keeps.
    """
    # Where not, no_new_privs already keeps an execve() from giving us what we have not.
    if SETPCAP not in permitted():
        return
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for number in range(last + 1):
        if number not in keep:
            _prctl(_PR_CAPBSET_DROP, number, "the bounding set")


def _set(keep: Set[int]) -> None:
    bits = sum(1 << number for number in keep)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    header = _header.pack(_VERSION_3, 0)
    # Effective, permitted, inheritable.
    _check(_libc.capset(header, _sets.pack(low, low, 0, high, high, 0)), "capset")


def end_with_parent(signal: int) -> None:
    """Have the kernel send us a signal when the thread that forked us ends."""
    _prctl(_PR_SET_PDEATHSIG, signal, "the signal at the parent's death")


def set_name(name: str) -> None:
    """Set the name of this thread, as `ps` shows it: 15 bytes at most."""
    _prctl(_PR_SET_NAME, name.encode(), "the name of a process")


def hide_memory() -> None:
    """Keep other processes of our user from our memory, and write no core dump."""
    _prctl(_PR_SET_DUMPABLE, 0, "dumpable")
