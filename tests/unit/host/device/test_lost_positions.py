# SPDX-License-Identifier: Apache-2.0
"""Packed rings whose position ended with the metadata of an earlier daemon."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.frontend import RingAt, region
from tests.fakes.loop import ManualLoop
from tests.fakes.ports import RecordedSlave
from tests.fakes.windows import MIB
from tests.unit.host.scene import MakeFile, Scene
from vhostpci_host.device.status import describe
from vhostpci_shared import packed
from vhostpci_shared.position import Position

RX, TX = RingAt.nth(0, base=0x8000_8000), RingAt.nth(1, base=0x8000_8000)
LEFT = Position(
    origin=5,
    desc=RX.desc,
    driver=RX.avail,
    device=RX.used,
    size=RX.size,
    at=0x8005,
    next=0x8005,
)
USED = packed.AVAIL | packed.USED


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with Scene(tmp_path, ManualLoop()) as scene:
        yield scene


def worked(scene: Scene, fd: int) -> RecordedSlave:
    """Connect a slave without agent, and a front-end whose ring 0 has been worked."""
    slave = scene.slave()
    qemu = scene.front_end([(region(16 * MIB), fd)], packed=True)
    for index in range(5):
        os.pwrite(fd, USED.to_bytes(2, "little"), RX.desc + 16 * index + 14)
    qemu.driver_ok([RX, TX])
    scene.settle()
    return slave


def problem(scene: Scene) -> str:
    return str(describe(scene.device)["rings"][0]["problem"])


def test_ring_waits_for_an_agent_that_knows_where_it_stands(
    scene: Scene, file: MakeFile, caplog: pytest.LogCaptureFixture
) -> None:
    slave = worked(scene, file(16 * MIB))
    assert not scene.device.leases[0].running
    assert scene.device.leases[1].running
    assert "nothing says where it stands" in problem(scene)
    assert "reload" not in caplog.text
    scene.device.store.metadata.write_position(0, LEFT)
    agent = scene.agent(slave)
    assert agent.snapshot().rings[0].runs
    assert agent.snapshot().rings[0].base == 0x8005
    assert problem(scene) == ""
    assert "stands at 0x8005" in caplog.text


def test_ring_that_the_agent_knows_nothing_of_waits_for_the_driver(
    scene: Scene, file: MakeFile, caplog: pytest.LogCaptureFixture
) -> None:
    agent = scene.agent(worked(scene, file(16 * MIB)))
    assert not agent.snapshot().rings[0].runs
    assert "nothing says where it stands" in problem(scene)
    assert caplog.text.count("reload the master's driver") == 1
    # What it says later is no answer: it says where rings stood before it is ready.
    scene.device.store.metadata.write_position(0, LEFT)
    scene.loop.advance(5.0)
    assert not agent.snapshot().rings[0].runs
