# SPDX-License-Identifier: Apache-2.0
"""A front-end that was disconnected and is expected back keeps what its slave has.

A slave VM would have to unplug the windows and plug them again, and without window 0 it
has no agent.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.loop import ManualLoop
from tests.fakes.windows import MIB
from tests.unit.host.scene import MakeFile, Scene
from vhostpci_host.device.status import state


@pytest.fixture(params=[True, False], ids=["attach", "arena"])
def plugged(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """A device whose windows are plugged into a slave VM."""
    memory = 0 if request.param else 16 * MIB
    qmp = tmp_path / "qmp"
    with Scene(tmp_path, ManualLoop(), memory=memory, slave_qmp=qmp) as scene:
        yield scene


def test_windows_stay_plugged_until_it_is_back(plugged: Scene, file: MakeFile) -> None:
    # None: the arena.
    memory = None if plugged.config.memory else plugged.memory(file())
    qemu = plugged.running(memory)
    windows = plugged.plugger.windows
    assert 0 in windows
    plugged.device.master_gone(returns=True)
    qemu.close()
    with plugged.agent(plugged.slave()) as agent:
        plugged.loop.advance(60.0)
        assert plugged.plugger.windows == windows
        assert not agent.snapshot().regions, "nothing of it may be used meanwhile"
        plugged.running(memory)
        plugged.loop.advance(5.0)
        assert state(plugged.device) == "running"
    assert not plugged.plugger.left_out


@pytest.mark.parametrize("agent", [True, False])
def test_windows_go_when_it_does_not_come_back(
    plugged: Scene, file: MakeFile, agent: bool
) -> None:
    memory = None if plugged.config.memory else plugged.memory(file())
    if agent:
        plugged.agent(plugged.slave())
    qemu = plugged.running(memory)
    plugged.device.master_gone(returns=True)
    qemu.close()
    plugged.loop.advance(10.0)
    plugged.device.forget_master()
    plugged.loop.advance(2.0)
    assert not plugged.plugger.wanted
    assert not plugged.shown
    assert plugged.config.memory or not plugged.device.store.files


def test_other_master_takes_their_place(tmp_path: Path, file: MakeFile) -> None:
    with Scene(tmp_path, ManualLoop(), slave_qmp=tmp_path / "qmp") as scene:
        scene.agent(scene.slave())
        first = scene.running(scene.memory(file()))
        scene.device.master_gone(returns=True)
        first.close()
        scene.running(scene.memory(file()))
        scene.loop.advance(2.0)
        assert len(scene.device.store.files) == 1
        scene.device.forget_master()
        scene.loop.advance(2.0)
        assert len(scene.device.store.files) == 1
        assert 0 in scene.plugger.windows
