# SPDX-License-Identifier: Apache-2.0
"""A lab whose daemon has a keeper, which starts a successor when it is killed."""

import os
import signal
from collections.abc import Callable

from tests.process.lab import Lab
from tests.waiting import wait_for
from vhostpci_host.errors import HostError


def serving(lab: Lab) -> int:
    """Return the process that serves."""
    pid: int = lab.status()["daemon"]["pid"]
    return pid


def kill(lab: Lab) -> None:
    """Kill the process that serves; the keeper starts another one."""
    os.kill(serving(lab), signal.SIGKILL)


def upgrade(lab: Lab) -> None:
    """Have the keeper start another process, and then end the one that serves."""
    lab.daemon.send(signal.SIGUSR2)


def replace(lab: Lab, how: Callable[[Lab], None] = kill) -> None:
    """Have the process that serves replaced, and wait until another one serves."""
    before = serving(lab)
    how(lab)

    def replaced() -> bool:
        try:
            return serving(lab) != before
        except HostError:
            return False  # the one that ended had accepted our connection

    wait_for(replaced, "the successor serves")
