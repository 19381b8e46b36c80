# SPDX-License-Identifier: Apache-2.0
"""A master with memory that cannot be used: not shared at all, or refused.

Of memory that is not shared at all QEMU sends no region, but rings.
"""

from pathlib import Path

import pytest

from tests.fakes.frontend import WITH_SLOTS, FrontEnd, Refused, RingAt, region
from tests.fakes.loop import ManualLoop
from tests.fakes.windows import MIB, Ram
from tests.unit.host.scene import MakeFile, Scene
from vhostpci_host.cli import print_status
from vhostpci_host.device.status import describe, state
from vhostpci_host.memory.regions import MemoryMap, PlacedRegion
from vhostpci_host.vhost_user.backend import Backend
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request


def start_rings(front_end: FrontEnd) -> None:
    """Describe the rings as QEMU does when it has no region to show."""
    front_end.send(Request.SET_FEATURES, vu.U64(front_end.features))
    for index in (0, 1):
        front_end.start_ring(RingAt.nth(index))


@pytest.mark.parametrize("memory", [16 * MIB, 0], ids=["arena", "attach"])
def test_it_is_told_how_to_share_its_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, memory: int
) -> None:
    """QEMU with a plain -m 512M says nothing about it."""
    with Scene(tmp_path, ManualLoop(), memory=memory) as scene:
        front_end = scene.front_end([], acks=WITH_SLOTS)
        for _ in range(2):
            start_rings(front_end)
            scene.settle()
        assert state(scene.device) == "master's memory is not shared"
        assert caplog.text.count("shows no memory") == 1
        assert "share=on" in caplog.text
        size = "" if memory else " --memory SIZE"
        assert f"`vhostpci-host qemu-args dev --role master{size}`" in caplog.text
        front_end.stop_ring(0)
        front_end.stop_ring(1)
        assert state(scene.device) == "master's driver is not loaded"


def test_memory_that_comes_after_the_rings_is_no_reason_to_warn(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    front_end = scene.front_end()
    start_rings(front_end)
    front_end.set_memory()
    scene.settle()
    assert "shows no memory" not in caplog.text
    assert scene.device.leases[0].running


def test_ring_outside_of_the_memory_is_no_lack_of_memory(ram: Ram) -> None:
    setup = Backend(queue_pairs=1, windows=ram).setup
    setup.rings[0].kicked, setup.rings[0].size = True, 256
    setup.rings[0].addr = vu.VringAddr(0, 0, 0, 0, 0)
    assert setup.memoryless
    setup.memory = MemoryMap().add(PlacedRegion(region(ram.size), 0, 0))
    assert not setup.memoryless


def test_memory_that_goes_for_a_moment_is_no_reason_to_warn(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """QEMU removes and adds its regions one by one when their layout changes."""
    front_end = scene.running(acks=WITH_SLOTS)
    memory = region(scene.config.memory)
    front_end.send(Request.REM_MEM_REG, vu.SingleRegion(memory))
    scene.settle()
    assert "shows no memory" not in caplog.text


@pytest.mark.parametrize("request_name", ["SET_MEM_TABLE", "ADD_MEM_REG"])
def test_refused_memory_is_the_state_until_other_memory_comes(
    scene: Scene, file: MakeFile, request_name: str
) -> None:
    """QEMU goes on without us, so the driver is loaded: only the memory is wrong."""
    front_end = scene.front_end(acks=WITH_SLOTS)
    good = front_end.regions

    def show() -> None:
        if request_name == "SET_MEM_TABLE":
            front_end.set_memory()
            return
        (one, fd) = front_end.regions[0]
        add = vu.SingleRegion(one)
        front_end.send(Request.ADD_MEM_REG, add, fd, need_reply=True)

    front_end.regions = [(good[0][0], file())]
    with pytest.raises(Refused, match=request_name):
        show()
    scene.settle()
    assert state(scene.device) == "master's memory is refused"
    text = print_status.text(describe(scene.device))
    assert "problem  the memory at 0x0 (0x1000000 bytes) is not the arena" in text
    front_end.regions = good
    show()
    scene.settle()
    assert state(scene.device) == "master's driver is not loaded"
    assert "problem" not in print_status.text(describe(scene.device))


def test_refused_memory_is_not_the_state_while_rings_run(
    scene: Scene, file: MakeFile
) -> None:
    """A table that is refused changes nothing."""
    front_end = scene.running()
    front_end.regions = [(front_end.regions[0][0], file())]
    with pytest.raises(Refused):
        front_end.set_memory()
    scene.settle()
    assert state(scene.device) == "no slave"
