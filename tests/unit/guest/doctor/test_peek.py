# SPDX-License-Identifier: Apache-2.0
"""Reading the metadata of a device that no agent serves, on a fake sysfs."""

from pathlib import Path

import pytest

from tests.fakes.sysfs import FakeSystem
from tests.unit.guest.pci.plugged import device
from vhostpci_guest.doctor import peek as module
from vhostpci_guest.doctor.peek import peek
from vhostpci_guest.pci.sysfs_device import PciDevice
from vhostpci_shared import metadata as md


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    monkeypatch.setattr(module, "_BEAT", 0)
    return FakeSystem(tmp_path, "vfio-pci", "uio_vhostpci")


def write(here: PciDevice, header: bytes) -> None:
    """Write the start of the metadata of a device."""
    with (here.path / "resource2").open("r+b") as window:
        window.seek(-md.SIZE, 2)
        window.write(header)


HEADER = bytes(md.Header(md.MAGIC, md.VERSION, md.SIZE, 4, 7))


def test_header_is_read_and_the_device_left_as_before(system: FakeSystem) -> None:
    here = device(system)
    write(here, HEADER)
    found = peek(here)
    assert found is not None
    assert found.before.startswith(HEADER)
    assert system.writes == []


def test_memory_that_is_off_is_switched_on_for_the_read(system: FakeSystem) -> None:
    here = device(system)
    (here.path / "config").write_bytes(bytes(256))
    assert peek(here) is not None
    assert system.writes == [("enable", "1"), ("enable", "0")]


def test_device_of_another_driver_is_left_alone(system: FakeSystem) -> None:
    here = device(system, driver="ivshmem-net")
    (here.path / "config").write_bytes(bytes(256))
    assert peek(here) is None
    assert system.writes == []


def test_node_that_only_an_agent_may_open_is_left_alone(system: FakeSystem) -> None:
    assert peek(device(system, driver="uio_vhostpci")) is None
    assert system.writes == []
