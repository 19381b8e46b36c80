# SPDX-License-Identifier: Apache-2.0
"""A TAP beside a real udev, which gives an interface with a random MAC another one."""

from pathlib import Path

import pytest

from tests.process.lab import SLAVE_TAP, Lab
from tests.process.udevd import LateUdev
from tests.waiting import wait_for

pytestmark = pytest.mark.process

MAC = "02:00:00:00:00:09"


def slave_mac(lab: Lab) -> str:
    """Return the MAC of the slave's TAP; empty if there is no TAP."""
    words = lab.run_in_slave("ip", "-o", "link", "show", SLAVE_TAP).stdout.split()
    return words[words.index("link/ether") + 1] if words else ""


def test_tap_keeps_the_mac_that_the_user_wants_beside_udev(
    lab: Lab, tmp_path: Path
) -> None:
    with LateUdev(tmp_path, lab.slave.prefix) as udev:
        # Not the agent's own TAP: on a loaded machine udev could look at that one when
        # it has the user's MAC already, and would leave it alone.
        lab.slave.run(f"ip tuntap add {SLAVE_TAP} mode tap vnet_hdr")
        udev.wait_for_change()
        lab.start_daemon()
        agent = lab.start_agent("--mac", MAC)
        wait_for(lambda: slave_mac(lab) == MAC, "the agent sets the MAC")
        udev.go()
        agent.wait_log("probably udev, changed the MAC to")
        wait_for(lambda: slave_mac(lab) == MAC, "the agent sets the MAC once more")
