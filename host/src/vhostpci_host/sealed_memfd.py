# SPDX-License-Identifier: Apache-2.0
"""Memory files that no process can cut, so no access to a mapping of one can fail."""

import fcntl
import os
from contextlib import ExitStack

from .fds import Fd

# F_SEAL_SEAL keeps anyone from adding a write seal.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def make(name: str, size: int) -> Fd:
    """Make one of `size` bytes.

    Raises:
        OSError: there is no memory, or no descriptor.
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    with ExitStack() as undo:
        file = undo.enter_context(Fd(os.memfd_create(name, flags)))
        # System calls: fcntl(F_ADD_SEALS), ftruncate, memfd_create.
        os.ftruncate(file.fileno(), size)
        fcntl.fcntl(file.fileno(), fcntl.F_ADD_SEALS, _SEALS)
        undo.pop_all()
    return file


def problem(file: Fd, size: int) -> str:
    """Return why a file is none of `size` bytes; empty if it is one."""
    try:
        # System calls: fcntl(F_GET_SEALS).
        seals = fcntl.fcntl(file.fileno(), fcntl.F_GET_SEALS)
    except OSError as error:
        return f"it is no memfd: {error.strerror}"
    found = os.fstat(file.fileno()).st_size
    if found != size or seals & _SEALS != _SEALS:
        return f"it has {found} bytes and seals {seals}"
    return ""
