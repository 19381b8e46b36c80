# SPDX-License-Identifier: Apache-2.0
"""The arguments of system calls that the filter looks at.

A filter sees numbers only, and not what a pointer leads to: it can look at the family
of a socket, but not at the path of a file.
"""

import fcntl
import mmap
import os
import signal
import socket
import termios
from collections.abc import Mapping

from .libseccomp import Condition

_INT = 0xFFFFFFFF
"""The kernel looks at these bits of an argument that is an `int`."""
_CLONE_THREAD = 0x10000  # <linux/sched.h>
_FIONCLEX, _FIOCLEX = 0x5450, 0x5451  # <asm-generic/ioctls.h>
_PR_SET_NAME = 15  # <linux/prctl.h>

_FCNTLS = {
    **{name: getattr(fcntl, name) for name in ("F_GETFD", "F_SETFD", "F_GETFL")},
    **{name: getattr(fcntl, name) for name in ("F_SETFL", "F_DUPFD_CLOEXEC")},
    **{name: getattr(fcntl, name) for name in ("F_ADD_SEALS", "F_GET_SEALS")},
    **{name: getattr(fcntl, name) for name in ("F_SETLEASE", "F_SETSIG")},
}
_IOCTLS = {
    "FIONBIO": termios.FIONBIO,
    "FIOCLEX": _FIOCLEX,
    "FIONCLEX": _FIONCLEX,
    "TCGETS": termios.TCGETS,
    "TIOCOUTQ": termios.TIOCOUTQ,
}


def conditions() -> Mapping[str, Mapping[str, Condition]]:
    """Return the names of conditions, for each system call that has any."""
    no_exec = {"NO_EXEC": Condition(2, mmap.PROT_EXEC, 0)}
    return {
        # A new process is made by the same call; it has no CLONE_THREAD.
        "clone": {"THREAD": Condition(0, _CLONE_THREAD, _CLONE_THREAD)},
        "fcntl": _ints(1, _FCNTLS),
        "ioctl": _ints(1, _IOCTLS),
        "kill": _ints(1, {"SIGUSR2": signal.SIGUSR2, "NO_SIGNAL": 0}),
        "mmap": no_exec,
        "mprotect": no_exec,
        "prctl": _ints(0, {"PR_SET_NAME": _PR_SET_NAME}),
        "prlimit64": _ints(0, {"OURS": 0}),
        "socket": _ints(0, {"AF_UNIX": socket.AF_UNIX}),
        "socketpair": _ints(0, {"AF_UNIX": socket.AF_UNIX}),
        "tgkill": _ints(0, {"OURS": os.getpid()}),
    }


def _ints(argument: int, values: Mapping[str, int]) -> dict[str, Condition]:
    return {
        name: Condition(argument, _INT, value & _INT) for name, value in values.items()
    }
