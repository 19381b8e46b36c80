# SPDX-License-Identifier: Apache-2.0
"""What a user is told of a device, where the parts of the device say it."""

from tests.fakes.ports import RecordedMaster
from tests.unit.host.scene import Scene
from vhostpci_host.cli import print_status
from vhostpci_host.device.status import describe, state


def test_front_end_that_hangs_is_the_state_and_not_a_missing_driver(
    scene: Scene,
) -> None:
    """A slave's QEMU on the master's socket waits there and says nothing."""
    scene.front_end([])
    master = scene.device.master
    assert isinstance(master, RecordedMaster)
    master.hangs = "says nothing: is it a slave's QEMU?"
    assert state(scene.device) == "front-end hangs"
    text = print_status.text(describe(scene.device))
    assert "problem  says nothing: is it a slave's QEMU?" in text
    master.hangs = ""
    assert state(scene.device) == "master's driver is not loaded"
