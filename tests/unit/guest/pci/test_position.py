# SPDX-License-Identifier: Apache-2.0
"""Reading the IVPosition of a device on a fake sysfs."""

import ctypes
import mmap
import struct

import pytest

from tests.fakes.sysfs import FakeSystem
from tests.unit.guest.pci.plugged import device, position
from vhostpci_guest.errors import Unusable
from vhostpci_guest.pci import bindings, sysfs, uio
from vhostpci_guest.pci.position import find_position


def test_registers_may_begin_in_the_middle_of_a_page(system: FakeSystem) -> None:
    """As on i440FX, where devices are side by side on one bus."""
    here = device(system, skip=0x300)
    with (here.path / "resource0").open("r+b") as file:
        # As in sysfs: the file has 256 bytes, its mapping the whole page.
        mapping = mmap.mmap(file.fileno(), 256)
    page = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    ctypes.c_uint32.from_address(page + 0x308).value = 4711
    assert find_position(here) == 4711


def test_position_is_read_from_the_register(system: FakeSystem) -> None:
    here = device(system)
    registers = bytearray(256)
    struct.pack_into("<I", registers, 8, 42)
    (here.path / "resource0").write_bytes(registers)
    assert find_position(here) == 42


def test_position_is_read_although_the_memory_was_off(system: FakeSystem) -> None:
    here = device(system)
    (here.path / "config").write_bytes(bytes(256))
    assert find_position(here) == 0
    assert system.writes == [("enable", "1"), ("enable", "0")]


def test_position_is_unknown_if_the_memory_is_off_and_another_driver_has_it(
    system: FakeSystem,
) -> None:
    here = device(system, driver="ivshmem-net")
    (here.path / "config").write_bytes(bytes(256))
    assert find_position(here) is None
    assert system.writes == []


@pytest.mark.parametrize("lockdown", [False, True], ids=["no lockdown", "lockdown"])
def test_position_is_read_and_the_device_left_as_before(
    system: FakeSystem, lockdown: bool
) -> None:
    here = device(system)
    (here.path / "resource0").write_bytes(struct.pack("<8xI244x", 42))
    if lockdown:
        path = system.sys / "kernel/security"
        path.mkdir(parents=True)
        (path / "lockdown").write_text("none [integrity] confidentiality\n")
        with pytest.raises(Unusable, match="lockdown"):
            position(here)
    else:
        assert position(here) == 42
    assert here.driver is None
    assert (here.path / "enable").read_text() == "0\n"


def test_device_that_is_not_wanted_is_read_without_any_driver(
    system: FakeSystem,
) -> None:
    here = device(system)
    assert bindings.bind_if(here, frozenset((7,))) == (0, None)
    assert "drivers_probe" not in [name for name, _ in system.writes]


def test_device_whose_position_only_a_driver_can_read_is_bound_and_given_back(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in lockdown, where sysfs does not map the registers but a driver does."""
    monkeypatch.setattr(sysfs, "why_not", lambda _pci: "lockdown")
    here = device(system)
    monkeypatch.setitem(
        bindings.BINDINGS,
        "vfio",
        bindings.Binding(lambda _pci: None, uio.bind, interrupts=True),
    )
    assert bindings.bind_if(here, frozenset((7,)), "vfio") == (0, None)
    assert [text for _, text in system.writes].count("uio_pci_generic") == 1
    assert here.driver is None
    with here.claimed():
        pass
    assert bindings.bind_if(here, frozenset((7,)), "vfio") == (0, None)
    position, bound = bindings.bind_if(here, frozenset((0,)), "vfio")
    assert position == 0
    assert bound is not None
    bound.close()
