# SPDX-License-Identifier: Apache-2.0
"""Give up the system calls that this program never makes, before it serves.

Theory of operation.  Each module names the system calls that it causes, in comments
("System calls: ...") beside the code; `interpreter.py` has those of Python itself.
`tools/system_calls.py` makes the list in `allowed.py` of them, and a test says when
that is out of date.  Any other call ends the process at once (`kill`), or is written to
the kernel's log (`log`): a front-end or a slave that took over this process could
start no program, reach no network, and trace no other process.

Three calls fail instead, with an error that their callers can live with:

- clone3() says that there is no such call, as its flags lie in memory, where no filter
  can look at them.  The C library then uses clone().
- mmap() and mprotect() of executable memory are forbidden by EACCES, so that a
  module in C which is only loaded now is an ImportError, and not the daemon's end.
"""

import contextlib
import ctypes
import errno
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from ..errors import HostError
from .allowed import ALLOWED
from .conditions import conditions
from .libseccomp import (
    ALLOW,
    KILL_PROCESS,
    LOG,
    Rule,
    Unavailable,
    failing_with,
    install,
)

log = logging.getLogger(__name__)

# The older name of a call, which aarch64 and newer C libraries do not have: a
# process that may make the one may make the other.
_SAME = {
    "chmod": ("fchmodat", "fchmodat2"),
    "dup2": ("dup3",),
    "epoll_wait": ("epoll_pwait", "epoll_pwait2"),
    "link": ("linkat",),
    "lstat": ("newfstatat",),
    "mkdir": ("mkdirat",),
    "poll": ("ppoll",),
    "readlink": ("readlinkat",),
    "rename": ("renameat",),
    "select": ("pselect6",),
    "unlink": ("unlinkat",),
    "chown": ("fchownat",),
    "access": ("faccessat", "faccessat2"),
}


class Choice(StrEnum):
    """A value of `--seccomp`."""

    AUTO = "auto"
    NONE = "none"
    LOG = "log"
    KILL = "kill"


@dataclass(frozen=True, slots=True)
class Filter:
    """Which system calls the process may still make."""

    mode: Choice = Choice.NONE
    """Never AUTO."""
    problem: str | None = None
    """Why there is none although the user did not say so."""


def filter_calls(choice: Choice) -> Filter:
    """Install the filter that the user wants; say what has become of that.

    Raises:
        HostError: this machine cannot have a filter, and the user insists.
    """
    if choice is Choice.NONE:
        return Filter()
    mode = Choice.LOG if choice is Choice.LOG else Choice.KILL
    _load_libgcc()
    try:
        install(LOG if mode is Choice.LOG else KILL_PROCESS, _rules(mode))
    except Unavailable as error:
        text = f"system calls cannot be filtered: {error}"
        if choice is not Choice.AUTO:
            raise HostError(
                f"{text}; without --seccomp {choice} the daemon runs unfiltered",
                code="H053",
            ) from None
        log.warning("%s; the daemon runs unfiltered", text)
        return Filter(problem=text)
    if mode is Choice.LOG:
        log.info("system calls beyond its list go to the kernel's log (--seccomp log)")
    return Filter(mode)


def _rules(mode: Choice) -> Iterator[Rule]:
    known = conditions()
    for call, names in ALLOWED.items():
        for same in (call, *_SAME.get(call, ())):
            if not names:
                yield Rule(ALLOW, same)
            for name in names:
                yield Rule(ALLOW, same, known[call][name])
    if mode is Choice.KILL:
        yield from _failing()


def _failing() -> Iterator[Rule]:
    """Return the rules of calls that fail instead of ending the process."""
    yield Rule(failing_with(errno.ENOSYS), "clone3")
    for call in ("mmap", "mprotect"):
        allowed = conditions()[call]["NO_EXEC"]
        forbidden = type(allowed)(allowed.argument, allowed.mask, allowed.mask)
        yield Rule(failing_with(errno.EACCES), call, forbidden)


def _load_libgcc() -> None:
    """Load what the C library loads at the end of a thread, and aborts without."""
    # Another C library, such as musl, does not have it and does not ask for it.
    with contextlib.suppress(OSError):
        ctypes.CDLL("libgcc_s.so.1")
