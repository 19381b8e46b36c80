# SPDX-License-Identifier: Apache-2.0
"""A lab whose daemon has a keeper, which starts a successor when it is killed."""

import os
import signal

from tests.process.lab import Lab
from tests.waiting import wait_for
from vhostpci_host.errors import HostError


def serving(lab: Lab) -> int:
    """Return the process that serves."""
    pid: int = lab.status()["daemon"]["pid"]
    return pid


def replace(lab: Lab) -> None:
    """Kill the process that serves, and wait until another one does."""
    before = serving(lab)
    os.kill(before, signal.SIGKILL)

    def replaced() -> bool:
        try:
            return serving(lab) != before
        except HostError:
            return False  # the one that ended had accepted our connection

    wait_for(replaced, "the successor serves")
