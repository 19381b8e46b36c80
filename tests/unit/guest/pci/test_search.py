# SPDX-License-Identifier: Apache-2.0
"""Finding ivshmem devices on a fake sysfs."""

import pytest

from tests.fakes.sysfs import FakeSystem
from tests.unit.guest.pci.plugged import HERE
from vhostpci_guest.errors import Unusable
from vhostpci_guest.pci import search


def test_only_ivshmem_devices_are_found(system: FakeSystem) -> None:
    system.plug("0000:00:07.0")
    system.plug("0000:00:01.0", device="0x1041")
    system.plug("0000:00:02.0", vendor="0x8086")
    system.plug("0000:00:05.0")
    names = ["0000:00:07.0", "0000:00:01.0", "0000:00:02.0", "0000:00:05.0"]
    found = search.find(system, names)
    assert [device.address for device in found] == ["0000:00:05.0", "0000:00:07.0"]


def test_device_that_was_unplugged_is_not_found(system: FakeSystem) -> None:
    assert search.find(system, [HERE]) == []


@pytest.mark.parametrize("text", ["00:05.0", "0000:00:05.0", "0000:00:05.0".upper()])
def test_address_may_be_spelled_as_lspci_does(text: str) -> None:
    assert search.normal_address(text) == HERE


@pytest.mark.parametrize("text", ["", "5", "00:05", "00:05.8", "../../x", "net0"])
def test_text_that_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(Unusable, match="no PCI address"):
        search.normal_address(text)


def test_address_without_a_device_is_refused(system: FakeSystem) -> None:
    with pytest.raises(Unusable, match="no PCI device"):
        search.at("00:05.0", system)


def test_device_that_is_not_ivshmem_is_refused(system: FakeSystem) -> None:
    system.plug(HERE, device="0x1041")
    with pytest.raises(Unusable, match="no ivshmem device"):
        search.at(HERE, system)
