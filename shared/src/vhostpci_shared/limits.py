# SPDX-License-Identifier: Apache-2.0
"""The limits of a process."""

import contextlib
import resource


def raise_descriptor_limit() -> None:
    """Raise the limit of open descriptors to the hard limit: a ring takes five."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
