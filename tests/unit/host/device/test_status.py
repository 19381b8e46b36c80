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


def test_problem_of_the_file_and_of_the_master_is_told_once(scene: Scene) -> None:
    """A master with more RAM than the device is both."""
    scene.front_end([])
    status = describe(scene.device)
    status["memory"]["problem"] = status["master"]["problem"] = "more RAM"
    assert print_status.text(status).count("problem  more RAM") == 1
