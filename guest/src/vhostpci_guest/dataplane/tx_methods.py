# SPDX-License-Identifier: Apache-2.0
"""How the master's packets go to the TAP: one by one, or many with one system call.

`cli/run_options.py` imports this file, so it imports nothing of the data plane.
"""

import errno
import os
from collections.abc import Mapping

AUTO = "auto"
WRITEV = "writev"
IO_URING = "io_uring"

METHODS = (AUTO, WRITEV, IO_URING)

_REASONS: Mapping[int, str] = {
    errno.ENOSYS: "this kernel has no io_uring",
    errno.EPERM: "io_uring is forbidden here, by sysctl kernel.io_uring_disabled or a "
    "seccomp filter",
    errno.EOPNOTSUPP: "this kernel's io_uring is too old",
    errno.ENOMEM: "there is no memory for io_uring; before Linux 5.12 RLIMIT_MEMLOCK "
    "may be too low",
}


def io_uring_reason(error: int) -> str:
    """Say why io_uring cannot be used.

    Args:
        error: the errno that the kernel gave.
    """
    return _REASONS.get(error) or f"the kernel refuses io_uring: {os.strerror(error)}"
