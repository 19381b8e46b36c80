# SPDX-License-Identifier: Apache-2.0
"""Which devices share a slave VM."""

import asyncio
from pathlib import Path

import pytest

from tests.fakes.slave_vm import FakeVm
from vhostpci_host.config.device import DeviceConfig, Mode
from vhostpci_host.hotplug import pool
from vhostpci_host.hotplug.pool import SlavePool


def test_devices_of_one_slave_share_it_until_the_last_is_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[FakeVm] = []

    def make(config: DeviceConfig, programs: None) -> FakeVm:
        made.append(FakeVm())
        return made[-1]

    def config(name: str, qmp: Path) -> DeviceConfig:
        return DeviceConfig(name=name, mode=Mode.ATTACH, slave_qmp=qmp)

    async def scenario() -> None:
        all_of_them = SlavePool()
        one = all_of_them.plugger(config("one", tmp_path / "qmp"))
        two = all_of_them.plugger(config("two", tmp_path / "sub" / ".." / "qmp"))
        other = all_of_them.plugger(config("other", tmp_path / "other"))
        assert one is not None
        assert two is not None
        assert other is not None
        assert len(made) == 2
        await one.close()
        assert not made[0].closed
        await two.close()
        assert made[0].closed
        await other.close()
        assert made[1].closed

    monkeypatch.setattr(pool, "_vm", make)
    asyncio.run(scenario())


def test_device_without_a_slave_vm_has_no_plugger() -> None:
    async def scenario() -> None:
        assert SlavePool().plugger(DeviceConfig(name="web", memory=1 << 30)) is None

    asyncio.run(scenario())
