# SPDX-License-Identifier: Apache-2.0
"""User Mode Linux and DPDK, with their messages in the order that was recorded."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.frontend import RingAt
from tests.fakes.loop import ManualLoop
from tests.fakes.other_frontends import (
    DPDK_BASE,
    UML_BASE,
    Dpdk,
    UserModeLinux,
    dpdk_region,
    ring_at,
    uml_region,
)
from tests.fakes.windows import MIB
from tests.unit.host.scene import MakeFile, Scene, ToDevice
from vhostpci_host.device.status import describe
from vhostpci_shared import metadata as md
from vhostpci_shared import packed

SIZE = 4 * MIB


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Attach mode, two queue pairs, and a process as slave."""
    with Scene(tmp_path, ManualLoop(), queue_pairs=2) as scene:
        yield scene


@pytest.fixture
def uml(scene: Scene, file: MakeFile) -> Iterator[UserModeLinux]:
    """User Mode Linux, booted; its driver is not loaded."""
    memory = [(uml_region(SIZE), file(UML_BASE + SIZE))]
    with UserModeLinux(ToDevice(scene.device, scene.loop), memory) as uml:
        uml.connect()
        yield uml


@pytest.fixture
def dpdk(scene: Scene, file: MakeFile) -> Iterator[Dpdk]:
    """A DPDK process; its port is not started."""
    memory = [(dpdk_region(SIZE), file(SIZE))]
    with Dpdk(ToDevice(scene.device, scene.loop), memory) as dpdk:
        dpdk.connect()
        yield dpdk


def rings(base: int, count: int) -> list[RingAt]:
    return [ring_at(base, index) for index in range(count)]


def running(scene: Scene) -> list[int]:
    return [lease.index for lease in scene.device.leases if lease.running]


def snapshot(scene: Scene) -> md.Snapshot:
    seen = scene.device.store.metadata.snapshot()
    assert seen is not None
    return seen


def calls_relayed(scene: Scene) -> int:
    return int(describe(scene.device)["rings"][1]["calls_relayed"])


def test_uml_runs_without_ever_enabling_a_ring(
    scene: Scene, uml: UserModeLinux
) -> None:
    scene.agent(scene.slave(is_process=True))
    uml.driver_ok(rings(UML_BASE, 2))
    scene.settle()
    assert running(scene) == [0, 1]
    assert snapshot(scene).regions == (md.Region(UML_BASE, SIZE, 256, UML_BASE),)
    assert scene.shown == {256: UML_BASE + SIZE}


def test_uml_is_interrupted_through_its_socket(
    scene: Scene, uml: UserModeLinux
) -> None:
    slave = scene.slave(is_process=True)
    scene.agent(slave)
    uml.driver_ok(rings(UML_BASE, 2))
    scene.settle()
    entry = snapshot(scene).rings[1]
    assert uml.interrupted(1), "no interrupt for what may have been lost"
    before = calls_relayed(scene)
    os.eventfd_write(slave.peers[entry.call_peer][entry.call_vector], 1)
    scene.loop.advance(0.001)
    assert uml.interrupted(1)
    assert calls_relayed(scene) == before + 1


def test_relayed_calls_are_counted_over_all_drivers_of_a_slave(
    scene: Scene, uml: UserModeLinux
) -> None:
    scene.agent(scene.slave(is_process=True))
    counts = []
    for _ in range(3):
        uml.driver_ok(rings(UML_BASE, 2))
        scene.settle()
        assert uml.interrupted(1)
        counts.append(calls_relayed(scene))
        uml.remove_driver()
        scene.settle()
    assert 0 < counts[0] < counts[1] < counts[2]


def test_uml_reloads_its_driver_without_stopping_the_rings(
    scene: Scene, uml: UserModeLinux
) -> None:
    scene.agent(scene.slave(is_process=True))
    uml.driver_ok(rings(UML_BASE, 2))
    scene.settle()
    before = snapshot(scene)
    uml.remove_driver()
    scene.settle()
    uml.driver_ok(rings(UML_BASE + MIB, 2))
    scene.settle()
    after = snapshot(scene)
    assert running(scene) == [0, 1]
    for old, new in zip(before.rings[:2], after.rings[:2], strict=True):
        assert new.desc == old.desc + MIB
        assert new.base == packed.START
        assert new.session != old.session
    assert after.regions == before.regions


@pytest.mark.parametrize("pairs", [1, 2])
def test_dpdk_runs_the_rings_that_it_enables_last(
    scene: Scene, dpdk: Dpdk, pairs: int
) -> None:
    scene.agent(scene.slave(is_process=True))
    dpdk.driver_ok(rings(DPDK_BASE, 2 * pairs))
    scene.settle()
    assert running(scene) == list(range(2 * pairs))
    assert snapshot(scene).regions == (md.Region(DPDK_BASE, SIZE, 256, 0),)


def test_dpdk_that_stops_a_ring_gets_its_used_index(scene: Scene, dpdk: Dpdk) -> None:
    scene.agent(scene.slave(is_process=True))
    described = rings(DPDK_BASE, 2)
    for start in (0, 7):
        dpdk.driver_ok(described)
        scene.settle()
        used = described[1].used - DPDK_BASE + 2
        os.pwrite(dpdk.regions[0][1], (start + 5).to_bytes(2, "little"), used)
        assert dpdk.stop(described) == [0, start + 5]
        assert running(scene) == []


def test_heap_that_grows_in_its_file_is_a_new_window(scene: Scene, dpdk: Dpdk) -> None:
    """The slave has mapped the old window with its old length."""
    agent = scene.agent(scene.slave(is_process=True))
    described = rings(DPDK_BASE, 2)
    dpdk.driver_ok(described)
    scene.settle()
    fd = dpdk.regions[0][1]
    os.ftruncate(fd, 2 * SIZE)
    dpdk.change_memory([(dpdk_region(2 * SIZE), fd)], described)
    scene.settle()
    assert snapshot(scene).regions == (md.Region(DPDK_BASE, 2 * SIZE, 257, 0),)
    assert scene.shown[257] == 2 * SIZE
    assert running(scene) == [0, 1]
    agent.answer()
    scene.loop.advance(2.0)
    assert list(scene.shown) == [257], "the old window is still open"
