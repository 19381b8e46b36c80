# SPDX-License-Identifier: Apache-2.0
"""A confined device: its slave has the shared region of the master's memory only."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import json_document
from tests.fakes.frontend import RingAt
from tests.fakes.loop import ManualLoop
from tests.fakes.windows import MIB
from tests.unit.host.scene import POOL, SHARED_AT, Scene
from vhostpci_host.cli import print_status
from vhostpci_host.device.status import describe, row, state
from vhostpci_shared import metadata as md
from vhostpci_shared.virtio import Feature

SHARED, MEMORY = 32 * MIB, 1024 * MIB


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A confined device, with neither a front-end nor a slave yet."""
    with Scene(tmp_path, ManualLoop(), memory=MEMORY, confined=True) as scene:
        yield scene


def test_slave_has_the_shared_region_and_no_more(scene: Scene) -> None:
    scene.agent(scene.slave())
    scene.running()
    assert state(scene.device) == "running"
    snapshot = scene.device.store.metadata.snapshot()
    assert snapshot is not None
    assert snapshot.regions == (md.Region(SHARED_AT, SHARED, 0, 0),)
    assert [ring.runs for ring in snapshot.rings] == [True, True]
    assert scene.device.store.size == 2 * SHARED  # with the metadata behind it


def test_agent_reads_how_much_of_the_memory_is_shared(scene: Scene) -> None:
    snapshot = scene.device.store.metadata.snapshot()
    assert snapshot is not None
    assert snapshot.confined == md.Confined(shared=SHARED, memory=MEMORY)


def test_how_much_is_shared_is_told(scene: Scene) -> None:
    status = describe(scene.device)
    assert status["confined"] == {"shared": SHARED, "memory": MEMORY, "pool": POOL}
    assert "confined 32 MiB of 1 GiB" in print_status.text(status)
    known = json_document.documented("vhostpci-host status")
    found = set(json_document.keys(status, known))
    assert {"confined.shared", "confined.memory", "confined.pool"} <= found & known
    one = row(scene.config, scene.device, "")
    assert one["confined"] == status["confined"]
    assert "arena (confined)" in print_status.table([one])


def test_ring_outside_of_the_shared_region_is_not_served(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Its master's kernel has no CMA in the shared region: no other memory is shown."""
    front_end = scene.front_end()
    front_end.driver_ok([RingAt.nth(0, above=SHARED_AT), RingAt.nth(1)])
    scene.settle()
    assert state(scene.device) == "master's rings cannot be served"
    assert not scene.device.rings_run
    assert "iommu_platform=on" in caplog.text
    assert "share all of it" not in caplog.text
    front_end.stop_ring(0)
    front_end.stop_ring(1)
    scene.start(front_end)  # its guest was started again, with other words
    assert scene.device.rings_run


def test_master_with_an_iommu_is_refused_and_stays(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Its rings' addresses mean nothing to us, although the memory may have them."""
    front_end = scene.running(has_iommu=True)
    assert Feature.F_ACCESS_PLATFORM in front_end.features
    assert state(scene.device) == "master's rings cannot be served"
    text = print_status.text(describe(scene.device))
    assert "problem  the master's driver gives addresses of an IOMMU" in text
    assert caplog.text.count("start a confined master without one") == 1
    snapshot = scene.device.store.metadata.snapshot()
    assert snapshot is not None
    assert not any(ring.runs for ring in snapshot.rings)
    assert Feature.F_ACCESS_PLATFORM not in Feature(snapshot.device.features)


def test_ordinary_device_gives_no_iommu_its_feature(tmp_path: Path) -> None:
    with Scene(tmp_path, ManualLoop(), memory=MEMORY) as scene:
        front_end = scene.front_end(has_iommu=True)
        assert Feature.F_ACCESS_PLATFORM not in front_end.features


def test_memory_of_attach_mode_is_not_known(tmp_path: Path) -> None:
    with Scene(tmp_path, ManualLoop(), confined=True) as scene:
        status = describe(scene.device)
        assert status["confined"]["memory"] is None
        assert "confined 32 MiB\n" in print_status.text(status)
