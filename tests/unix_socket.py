# SPDX-License-Identifier: Apache-2.0
"""Connections to Unix sockets."""

import os
import socket
from contextlib import ExitStack
from pathlib import Path


def connected(path: Path, timeout: float | None = None) -> socket.socket:
    """Return a connection; nothing is left open if there is none.

    Raises:
        OSError: nothing listens there.
    """
    with ExitStack() as undo:
        made = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        made.settimeout(timeout)
        made.connect(os.fspath(path))
        undo.pop_all()
    return made
