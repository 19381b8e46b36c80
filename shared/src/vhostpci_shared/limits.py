# SPDX-License-Identifier: Apache-2.0
"""The limits of a process."""

import contextlib
import errno
import resource

from .errors import Said


# System calls: prlimit64(OURS).
def raise_descriptor_limit() -> None:
    """Raise the limit of open descriptors to the hard limit: a ring takes five."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def exhausted(error: BaseException) -> bool:
    """Whether an error says that there are no more descriptors."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)


def shortage(error: BaseException | None) -> OSError | None:
    """Return the error of a lack of descriptors behind another error, if there is one.

    Code that cannot open a file often reports that by an error of another type.
    """
    while error is not None:
        if isinstance(error, OSError) and exhausted(error):
            return error
        error = error.__cause__ or error.__context__
    return None


def reason(error: OSError) -> str:
    """Return why something failed: which limit, if that is a lack of descriptors."""
    return no_descriptors(error) if exhausted(error) else error.strerror or str(error)


def no_descriptors(error: OSError) -> Said:
    """Return what to tell of a lack of descriptors: which limit, and its value.

    Args:
        error: an error that is `exhausted`.
    """
    if error.errno == errno.ENFILE:
        # The value is in a file, which cannot be opened now.
        return Said(
            "no descriptors are left on this machine: raise its limit (sysctl "
            "fs.file-max), or end the program that has so many open",
            code="S028",
        )
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Said(
        f"no descriptors are left, of the {soft} that this process may have: raise its "
        "limit (LimitNOFILE= of its unit, or ulimit -n in its shell)",
        code="S029",
    )
