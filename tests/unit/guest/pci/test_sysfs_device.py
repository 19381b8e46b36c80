# SPDX-License-Identifier: Apache-2.0
"""Claiming a device, and binding it to a driver, on a fake sysfs."""

from contextlib import suppress

import pytest

from tests.fakes.sysfs import BAR2, FakeSystem
from tests.unit.guest.pci.plugged import HERE, device
from vhostpci_guest.errors import Unusable


def test_device_has_the_vectors_bars_and_group_that_sysfs_shows(
    system: FakeSystem,
) -> None:
    here = device(system, vectors=17, group="3")
    assert here.msix_vectors == 17
    assert here.bar_size(2) == BAR2
    assert here.bar_size(3) == 0
    assert here.iommu_group == "3"
    assert here.driver is None


def test_binding_affects_one_device_and_is_undone(system: FakeSystem) -> None:
    system.load("vfio-pci")
    here = device(system)
    with here.bound("vfio-pci"):
        assert here.driver == "vfio-pci"
        assert (here.path / "driver_override").read_text() == "(null)\n"
    assert here.driver is None
    assert "new_id" not in [name for name, _ in system.writes]


@pytest.mark.parametrize("new", ["vfio-pci", None], ids=["another", "none"])
def test_driver_of_before_is_bound_again(system: FakeSystem, new: str | None) -> None:
    system.load("vfio-pci")
    here = device(system, driver="uio_pci_generic")
    with suppress(ZeroDivisionError), here.bound(new):
        during = here.driver
        _ = 1 / 0
    assert during == new
    assert here.driver == "uio_pci_generic"


def test_driver_of_before_is_bound_again_after_a_failed_bind(
    system: FakeSystem,
) -> None:
    system.load("vfio-pci")
    system.deaf = {"vfio-pci"}
    here = device(system, driver="uio_pci_generic")
    with (
        pytest.raises(Unusable, match="vfio-pci does not take"),
        here.bound("vfio-pci"),
    ):
        pass
    assert here.driver == "uio_pci_generic"
    assert (here.path / "driver_override").read_text() == "(null)\n"


def test_device_with_the_wanted_driver_is_not_bound_again(system: FakeSystem) -> None:
    here = device(system, driver="vfio-pci")
    with here.bound("vfio-pci"):
        pass
    assert system.writes == []
    assert here.driver == "vfio-pci"


def test_driver_override_of_the_user_is_restored(system: FakeSystem) -> None:
    system.load("vfio-pci")
    here = device(system)
    (here.path / "driver_override").write_text("ivshmem-net\n")
    with here.bound("vfio-pci"):
        pass
    assert (here.path / "driver_override").read_text() == "ivshmem-net\n"


def test_device_without_a_driver_is_kept_from_drivers_that_are_loaded_later(
    system: FakeSystem,
) -> None:
    system.load("uio_vhostpci")
    here = device(system)
    with here.bound(None):
        assert not system.matches(here.address, "uio_vhostpci")
    assert system.matches(here.address, "uio_vhostpci")


def test_driver_override_that_a_killed_agent_left_is_cleared(
    system: FakeSystem,
) -> None:
    system.load("vfio-pci")
    here = device(system)
    (here.path / "driver_override").write_text("vhostpci-guest\n")
    with here.bound("vfio-pci"):
        pass
    assert system.matches(here.address, "uio_vhostpci")


def test_unplugged_device_is_not_restored(system: FakeSystem) -> None:
    here = device(system)
    with here.bound(None):
        system.unplug(here.address)


def test_two_agents_never_share_a_device(system: FakeSystem) -> None:
    here = device(system)
    with here.claimed(), pytest.raises(Unusable, match="another vhostpci-guest"):
        here.claimed().__enter__()
    with here.claimed():
        pass


def test_device_of_another_driver_is_left_alone(system: FakeSystem) -> None:
    here = device(system, driver="ivshmem-net")
    with pytest.raises(Unusable, match=r"bound to ivshmem-net.*/unbind"):
        here.claimed().__enter__()
    assert here.driver == "ivshmem-net"


def test_device_that_a_process_has_open_is_left_alone(system: FakeSystem) -> None:
    here = device(system, driver="uio_pci_generic")
    system.opened("uio0", pid=77, name="testpmd")
    with pytest.raises(Unusable, match=r"in use by testpmd \(77\)"):
        here.claimed().__enter__()


def test_memory_is_switched_off_as_often_as_it_was_switched_on(
    system: FakeSystem,
) -> None:
    here = device(system)
    (here.path / "enable").write_text("1\n")  # another process switched it on
    with here.enabled():
        assert (here.path / "enable").read_text() == "2\n"
    assert (here.path / "enable").read_text() == "1\n"


def test_driver_that_another_bound_meanwhile_stays(system: FakeSystem) -> None:
    system.load("vfio-pci")
    here = device(system)
    with here.bound(None):
        system.write(here.path / "driver_override", "vfio-pci")
        system.write(system.sys / "bus/pci/drivers_probe", HERE)
    assert here.driver == "vfio-pci"


def test_device_is_complete_once_its_bars_have_addresses_and_files(
    system: FakeSystem,
) -> None:
    here = device(system)
    assert here.complete
    whole = (here.path / "resource").read_text()
    (here.path / "resource").write_text("0x0 0x0 0x0\n" * 6)
    assert not here.complete
    first, second, _, *rest = whole.splitlines()
    (here.path / "resource").write_text(
        "\n".join((first, second, "0x0 0x0 0x0", *rest))
    )
    assert not here.complete
    (here.path / "resource").write_text(whole)
    (here.path / "resource2").unlink()
    assert not here.complete


def test_driver_that_another_bound_in_place_of_the_first_stays(
    system: FakeSystem,
) -> None:
    system.load("vfio-pci")
    here = device(system, driver="uio_pci_generic")
    with here.bound(None):
        system.write(here.path / "driver_override", "vfio-pci")
        system.write(system.sys / "bus/pci/drivers_probe", HERE)
    assert here.driver == "vfio-pci"
