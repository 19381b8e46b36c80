# SPDX-License-Identifier: Apache-2.0
"""The processes of `vhostpci-host run`: a keeper with the daemon as its child.

Or the daemon alone, with `--keeper none`.
"""

import os
import signal
from contextlib import ExitStack

from tests.processes import children, stop
from tests.waiting import PROCESS_TIMEOUT, is_readable

NOT_TAKEN = (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT)
"""Signals that the keeper cannot pass on."""


def serving(pid: int) -> int:
    """Return the process that serves: the keeper's first child, or `pid` itself."""
    return next(iter(children(pid)), pid)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to the process that was started.

    One that it cannot take, and pass on, goes to all of its children as well; they have
    ended when this returns, if it has killed them.
    """
    if number not in NOT_TAKEN:
        os.kill(pid, number)
        return
    # Stopped, it starts no successor meanwhile.
    stop(pid)
    if number == signal.SIGSTOP:
        for child in children(pid):
            stop(child)
        return
    with ExitStack() as stack:
        ended = []
        for child in children(pid):
            pidfd = os.pidfd_open(child)
            stack.callback(os.close, pidfd)
            signal.pidfd_send_signal(pidfd, number)
            ended.append(pidfd)
        os.kill(pid, number)
        if number == signal.SIGKILL:
            for pidfd in ended:
                is_readable(pidfd, PROCESS_TIMEOUT)
