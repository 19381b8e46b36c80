# SPDX-License-Identifier: Apache-2.0
"""A confined device: its master shows a region above address 0, and no more."""

import json
import os
from pathlib import Path

import pytest

from tests.fakes.frontend import Dropped
from tests.process.kept import kill, replace, upgrade
from tests.process.lab import ATTACH, Lab
from tests.process.master import FileRegion, Ram

pytestmark = pytest.mark.process

POOL, AREA, SHARED_AT = 16 << 20, 16 << 20, 512 << 20
CONFINED = ("--confined", "16M")
ARENA = ("--memory", "1G", *CONFINED)


def shared(lab: Lab) -> Ram:
    """The shared region of a confined master; its bounce pool is where buffers are."""
    return Ram.of_arena(lab.arena, POOL + AREA, SHARED_AT)


def memfd(size: int, guest_addr: int) -> FileRegion:
    fd = os.memfd_create("memory", os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return FileRegion(guest_addr, size, fd)


def crosses(lab: Lab) -> None:
    """Packets cross both ways."""
    lab.wait_carrier("UP")
    lab.wait_state("running")
    assert lab.ping_from_master() == 5
    assert lab.ping_from_slave() == 5


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_packets_cross_and_go_on_with_a_successor(lab: Lab, *, packed: bool) -> None:
    lab.start_daemon(*ARENA, "--keeper", "auto")
    lab.start_agent()
    lab.start_master(shared(lab), packed=packed).load()
    crosses(lab)
    found = {"shared": POOL + AREA, "memory": 1 << 30}
    assert lab.status()["confined"] == {**found, "pool": POOL}
    assert lab.status()["memory"]["window"] == 2 * (POOL + AREA)
    assert "confined 32 MiB of 1 GiB" in lab.run_host("status", "net0").stdout
    sample = 'vhostpci_device_confined_shared_bytes{device="net0"}'
    assert f"{sample} {POOL + AREA}\n" in lab.run_host("metrics").stdout
    lab.daemon.start_log_here()
    replace(lab)
    crosses(lab)
    replace(lab, upgrade)
    crosses(lab)
    for text in ("front-end", "cannot be used", "Traceback"):
        assert not lab.daemon.said(text)
    assert lab.daemon.end() == 0


def test_attached_region_is_shown_to_a_process(lab: Lab) -> None:
    lab.start_daemon(*ATTACH, *CONFINED)
    lab.start_agent()
    lab.start_master(Ram(memfd(2 * POOL, SHARED_AT))).load()
    crosses(lab)
    assert len(lab.status()["windows"]) == 1


def test_master_that_shares_more_may_not_come_back_whichever_daemon_serves(
    lab: Lab,
) -> None:
    lab.start_daemon(*ARENA, "--keeper", "auto")
    lab.start_agent()
    memory = shared(lab)
    master = lab.start_master(memory)
    low = memfd(16 << 20, 0)
    master.frontend.regions = [*Ram(low).memory_table(), *memory.memory_table()]
    with pytest.raises(Dropped):
        master.load()
    low.close()
    refused = "master's memory is refused: the master has no carrier"
    lab.wait_state(refused)
    assert "memory-backend-ram" in lab.status()["carrier"]["refused"]
    lab.daemon.wait_log("is not the shared region")
    assert lab.daemon.log.count("is not the shared region") == 1
    for way in (kill, upgrade):
        replace(lab, way)
        lab.wait_state(refused)
        assert lab.status()["carrier"]["waits_for"] == os.getpid()
        assert not Path(lab.status()["sockets"]["vhost_user"]).exists()


def test_master_whose_rings_lie_elsewhere_is_served_when_its_guest_starts_again(
    lab: Lab,
) -> None:
    """As with a kernel without CMA there; QEMU stays connected all the time."""
    lab.start_daemon(*ARENA)
    lab.start_agent()
    memory = shared(lab)
    master = lab.start_master(memory)
    private = memfd(16 << 20, 0)
    elsewhere = Ram(private)
    master.memory = elsewhere
    master.load()
    lab.wait_state("master's rings cannot be served")
    lab.daemon.wait_log("iommu_platform=on")
    assert master.unload() == [0, 0]
    private.close()
    master.memory = memory
    master.load()
    crosses(lab)
    assert not lab.daemon.said("dropped")


def test_reload_that_confines_a_device_starts_it_again_with_another_arena(
    lab: Lab, tmp_path: Path
) -> None:
    lab.start_fleet("net0")
    file = tmp_path / "vms.toml"
    text = file.read_text().replace("memory = ", 'confined = "16M"\nmemory = "1G" # ')
    file.write_text(text)
    lab.start_master().close()  # which has the arena stay
    lab.wait_state("no master")
    secret = b"all of an ordinary master's memory"
    with lab.arena.open("r+b") as arena:
        arena.write(secret)
    with lab.arena.open("rb"):  # as a master that has not ended
        assert "it cannot be replaced" in lab.run_host("reload").stderr
    done = lab.run_host("reload")
    assert done.returncode == 0, done.stderr
    rows = json.loads(lab.run_host("list", "-j").stdout)
    assert [one["confined"]["pool"] for one in rows] == [POOL]
    assert secret not in lab.arena.read_bytes()  # its file has the same size
