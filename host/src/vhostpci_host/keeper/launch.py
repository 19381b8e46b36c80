# SPDX-License-Identifier: Apache-2.0
"""The process that a user has started becomes the keeper, and its child the daemon."""

import os
import socket
import sys
from collections.abc import Sequence

from . import notices, signals


def become_keeper(arguments: Sequence[str]) -> None:
    """Execute the keeper in this process; return in a child, which is the daemon.

    The child goes on with all that this process has loaded, and need not start Python
    again.  The keeper has the process ID that the user knows, and its exit status.

    Args:
        arguments: those of vhostpci-host, for the daemon's successors.
    """
    # All signals wait until the keeper, and until the daemon, has its handlers.
    signals.block()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # else both processes would write what waits in it
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        os.environ[notices.CHANNEL] = str(theirs.detach())
        return
    theirs.close()
    os.set_inheritable(ours.fileno(), True)
    os.environ[notices.FIRST] = f"{pid}:{ours.fileno()}"
    os.execv(sys.executable, [sys.executable, *_flags(), *_program(), *arguments])


def _flags() -> list[str]:
    # Without the present directory in the path, where other users may have put modules;
    # unless it is there by `python -m`, and may be where our modules are.
    by_module = getattr(sys.modules["__main__"], "__spec__", None) is not None
    return [] if by_module and not sys.flags.safe_path else ["-P"]


def _program() -> list[str]:
    return ["-m", __package__]
