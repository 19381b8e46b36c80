# SPDX-License-Identifier: Apache-2.0
"""A slave VM whose QEMU is connected to an earlier daemon, which cannot be seen here.

Its agent still has the arena mapped, so it sees this daemon's metadata, and answers.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.agent import FakeAgent
from tests.fakes.loop import ManualLoop
from tests.fakes.windows import MIB
from tests.unit.host.scene import Scene
from vhostpci_host.cli import print_status
from vhostpci_host.device.status import describe
from vhostpci_shared.metadata import DeviceFlag

PLUG_AGAIN = "slave must be plugged again"


@pytest.fixture
def stale(scene: Scene) -> Iterator[FakeAgent]:
    """The agent of a slave VM that has lost its daemon, while a master's rings run."""
    with scene.agent(scene.slave()) as agent:
        scene.running()
        scene.device.slave_gone()
        yield agent


def state(scene: Scene) -> str:
    return str(describe(scene.device)["state"])


def test_stale_slave_is_given_no_ring(scene: Scene, stale: FakeAgent) -> None:
    """Neither its kicks nor its calls would arrive, so it must have no carrier."""
    seen = stale.snapshot()
    assert seen.device.flags == DeviceFlag.MASTER
    assert not any(ring.runs for ring in seen.rings)


def test_stale_slave_is_reported_with_what_to_do(
    scene: Scene, stale: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    assert state(scene) == "no slave"
    scene.loop.advance(10.0)
    assert state(scene) == PLUG_AGAIN
    (line,) = [line for line in caplog.messages if "an earlier daemon" in line]
    assert "restart the slave VM; or unplug its device and plug it again" in line
    assert "problem  the slave VM" in print_status.text(describe(scene.device))


def test_agent_that_ends_shortly_after_its_connection_is_not_reported(
    scene: Scene, stale: FakeAgent, caplog: pytest.LogCaptureFixture
) -> None:
    scene.loop.advance(1.0)
    stale.beats = False
    with caplog.at_level(logging.WARNING):
        scene.loop.advance(10.0)
    assert state(scene) == "no slave"
    assert not any("an earlier daemon" in line for line in caplog.messages)


def test_slave_that_was_plugged_again_is_served(scene: Scene, stale: FakeAgent) -> None:
    before = scene.sessions()
    scene.loop.advance(10.0)
    with scene.agent(scene.slave()) as agent:
        seen = agent.snapshot()
        assert DeviceFlag.SLAVE in seen.device.flags
        assert all(ring.runs for ring in seen.rings)
        assert all(new > old for new, old in zip(scene.sessions(), before, strict=True))
        assert state(scene) == "running"
        assert describe(scene.device)["slave_problem"] is None


def test_stale_slave_that_the_daemon_plugs_is_plugged_again_by_it(
    tmp_path: Path,
) -> None:
    qmp = tmp_path / "qmp"
    with (
        Scene(tmp_path, ManualLoop(), memory=16 * MIB, slave_qmp=qmp) as scene,
        scene.agent(scene.slave()),
    ):
        scene.running()
        scene.device.slave_gone()
        scene.loop.advance(10.0)
        assert "plugged again by itself" in scene.device.slave_problem
