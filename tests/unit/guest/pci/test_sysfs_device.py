# SPDX-License-Identifier: Apache-2.0
"""Finding, claiming and binding devices, on a fake sysfs."""

import ctypes
import mmap
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.sysfs import BAR2, FakeSystem, config
from vhostpci_guest.errors import Unusable
from vhostpci_guest.pci import bindings, config_space, search, sysfs, uio
from vhostpci_guest.pci.position import find_position
from vhostpci_guest.pci.sysfs_device import PciDevice

HERE = "0000:00:05.0"


def position(here: PciDevice) -> int:
    """Have a device's IVPosition found out, and no more."""
    found, bound = bindings.bind_if(here, frozenset())
    assert bound is None
    return found


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    return FakeSystem(tmp_path, "vfio-pci", "uio_pci_generic")


def device(system: FakeSystem, **options: str | int | None) -> PciDevice:
    system.plug(HERE, **options)  # type: ignore[arg-type]
    return search.at(HERE, system)


def test_only_ivshmem_devices_are_found(system: FakeSystem) -> None:
    system.plug("0000:00:07.0")
    system.plug("0000:00:01.0", device="0x1041")
    system.plug("0000:00:02.0", vendor="0x8086")
    system.plug("0000:00:05.0")
    names = ["0000:00:07.0", "0000:00:01.0", "0000:00:02.0", "0000:00:05.0"]
    found = search.find(system, names)
    assert [device.address for device in found] == ["0000:00:05.0", "0000:00:07.0"]


def test_device_that_went_while_we_looked_is_not_found(system: FakeSystem) -> None:
    assert search.find(system, [HERE]) == []


@pytest.mark.parametrize("text", ["00:05.0", "0000:00:05.0", "0000:00:05.0".upper()])
def test_address_may_be_spelled_as_lspci_does(text: str) -> None:
    assert search.normal_address(text) == HERE


@pytest.mark.parametrize("text", ["", "5", "00:05", "00:05.8", "../../x", "net0"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(Unusable, match="no PCI address"):
        search.normal_address(text)


def test_no_device_at_an_address_is_said(system: FakeSystem) -> None:
    with pytest.raises(Unusable, match="no PCI device"):
        search.at("00:05.0", system)


def test_another_kind_of_device_is_refused(system: FakeSystem) -> None:
    system.plug(HERE, device="0x1041")
    with pytest.raises(Unusable, match="no ivshmem device"):
        search.at(HERE, system)


def test_device_tells_its_vectors_and_window(system: FakeSystem) -> None:
    here = device(system, vectors=17, group="3")
    assert here.msix_vectors == 17
    assert here.bar_size(2) == BAR2
    assert here.bar_size(3) == 0
    assert here.iommu_group == "3"
    assert here.driver is None


def test_registers_may_begin_in_the_middle_of_a_page(system: FakeSystem) -> None:
    """As on i440FX, where devices are side by side on one bus."""
    here = device(system, skip=0x300)
    with (here.path / "resource0").open("r+b") as file:
        # As in sysfs: the file has 256 bytes, its mapping the whole page.
        mapping = mmap.mmap(file.fileno(), 256)
    page = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    ctypes.c_uint32.from_address(page + 0x308).value = 4711
    assert find_position(here) == 4711


def test_vectors_are_unknown_to_others_than_root(system: FakeSystem) -> None:
    here = device(system)
    (here.path / "config").write_bytes(config(3)[:64])
    assert here.msix_vectors is None


def test_capability_list_that_loops_has_an_end(system: FakeSystem) -> None:
    here = device(system)
    space = bytearray(config(3))
    space[0x51] = 0x40  # MSI-X comes before ...
    space[0x40 + 1] = 0x40  # ... but the first points to itself
    (here.path / "config").write_bytes(space)
    assert here.msix_vectors == 0


@given(st.binary(min_size=256, max_size=256))
def test_any_configuration_space_has_some_number_of_vectors(space: bytes) -> None:
    assert 0 <= config_space.msix_vectors(space) <= 2048


def test_position_is_read_from_the_register(system: FakeSystem) -> None:
    here = device(system)
    registers = bytearray(256)
    struct.pack_into("<I", registers, 8, 42)
    (here.path / "resource0").write_bytes(registers)
    assert find_position(here) == 42


def test_position_of_a_device_that_is_off_is_read_too(system: FakeSystem) -> None:
    here = device(system)
    (here.path / "config").write_bytes(bytes(256))
    assert find_position(here) == 0
    assert system.writes == [("enable", "1"), ("enable", "0")]


def test_position_of_a_device_that_is_off_and_anothers_is_unknown(
    system: FakeSystem,
) -> None:
    here = device(system, driver="ivshmem-net")
    (here.path / "config").write_bytes(bytes(256))
    assert find_position(here) is None
    assert system.writes == []


def test_binding_is_for_this_device_alone_and_undone(system: FakeSystem) -> None:
    system.load("vfio-pci")
    here = device(system)
    with here.bound("vfio-pci"):
        assert here.driver == "vfio-pci"
        assert (here.path / "driver_override").read_text() == "(null)\n"
    assert here.driver is None
    assert "new_id" not in [name for name, _ in system.writes]


@pytest.mark.parametrize("new", ["vfio-pci", None], ids=["another", "none"])
def test_what_was_bound_is_bound_again(system: FakeSystem, new: str | None) -> None:
    system.load("vfio-pci")
    here = device(system, driver="uio_pci_generic")
    with suppress(ZeroDivisionError), here.bound(new):
        during = here.driver
        _ = 1 / 0
    assert during == new
    assert here.driver == "uio_pci_generic"


def test_binding_that_fails_puts_back_what_was_bound(system: FakeSystem) -> None:
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


def test_driver_that_has_it_already_is_left_alone(system: FakeSystem) -> None:
    here = device(system, driver="vfio-pci")
    with here.bound("vfio-pci"):
        pass
    assert system.writes == []
    assert here.driver == "vfio-pci"


def test_override_of_the_user_is_put_back(system: FakeSystem) -> None:
    system.load("vfio-pci")
    here = device(system)
    (here.path / "driver_override").write_text("ivshmem-net\n")
    with here.bound("vfio-pci"):
        pass
    assert (here.path / "driver_override").read_text() == "ivshmem-net\n"


def test_device_that_is_bound_to_none_is_kept_from_drivers_that_are_loaded_then(
    system: FakeSystem,
) -> None:
    system.load("uio_vhostpci")
    here = device(system)
    with here.bound(None):
        assert not system.matches(here.address, "uio_vhostpci")
    assert system.matches(here.address, "uio_vhostpci")


def test_what_a_killed_agent_kept_from_all_drivers_is_let_go_by_the_next_one(
    system: FakeSystem,
) -> None:
    system.load("vfio-pci")
    here = device(system)
    (here.path / "driver_override").write_text("vhostpci-guest\n")
    with here.bound("vfio-pci"):
        pass
    assert system.matches(here.address, "uio_vhostpci")


def test_device_that_goes_has_nothing_to_put_back(system: FakeSystem) -> None:
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


def test_vfio_group_that_a_process_has_open_is_left_alone(system: FakeSystem) -> None:
    here = device(system, driver="vfio-pci", group="3")
    system.opened("vfio/3", pid=77, name="qemu")
    with pytest.raises(Unusable, match=r"in use by qemu \(77\)"):
        bindings.bind(here)


def test_memory_is_switched_on_and_off_once(system: FakeSystem) -> None:
    here = device(system)
    (here.path / "enable").write_text("1\n")  # somebody else's
    with here.enabled():
        assert (here.path / "enable").read_text() == "2\n"
    assert (here.path / "enable").read_text() == "1\n"


@pytest.mark.parametrize("way", ["uio", "sysfs"])
def test_bound_device_has_its_window_and_polls(system: FakeSystem, way: str) -> None:
    here = device(system, vectors=5)
    registers = bytearray(256)
    struct.pack_into("<I", registers, 8, 42)
    (here.path / "resource0").write_bytes(registers)
    bound = bindings.bind(here, way)
    assert bound.binding == way
    assert bound.window.id == 42
    assert bound.window.size == BAR2
    assert bound.vector_count == 5
    assert bound.vector(0) is None
    bound.window.view[7] = 9
    bound.close()
    assert (here.path / "resource2").read_bytes()[7] == 9
    assert here.driver is None
    assert (here.path / "enable").read_text() == "0\n"


def test_doorbell_is_one_word_in_the_register(system: FakeSystem) -> None:
    here = device(system)
    bound = bindings.bind(here, "sysfs")
    bound.ring(3, 2)
    assert bound.doorbell(3, 2).value == 0x30002
    bound.close()
    registers = (here.path / "resource0").read_bytes()
    assert registers[12:16] == struct.pack("<I", 0x30002)


@pytest.mark.parametrize(("peer", "vector"), [(65536, 0), (0, 65536), (-1, 0)])
def test_doorbell_that_does_not_fit_is_refused(
    system: FakeSystem, peer: int, vector: int
) -> None:
    bound = bindings.bind(device(system), "sysfs")
    with pytest.raises(ValueError, match="no such doorbell"):
        bound.ring(peer, vector)
    bound.close()


def test_auto_takes_the_best_and_says_why_not_the_better(
    system: FakeSystem, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bound = bindings.bind(device(system))
    bound.close()
    assert "bound by uio (polling, uncached)" in caplog.text
    assert "not kmod: no kernel module uio_vhostpci" in caplog.text
    assert "not vfio: the slave VM has no vIOMMU" in caplog.text


def test_auto_falls_back_to_sysfs(tmp_path: Path) -> None:
    bound = bindings.bind(device(FakeSystem(tmp_path)))
    assert bound.binding == "sysfs"
    bound.close()


def test_way_that_does_not_work_is_explained(system: FakeSystem) -> None:
    with pytest.raises(Unusable, match=r"not vfio: .*-device intel-iommu,intremap=on"):
        bindings.bind(device(system), "vfio")


def test_others_than_root_are_told_so(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(system, "write", refuse)
    with pytest.raises(Unusable, match="run as root"):
        bindings.bind(device(system))


def test_lockdown_is_seen_beforehand(system: FakeSystem) -> None:
    path = system.sys / "kernel/security"
    path.mkdir(parents=True)
    (path / "lockdown").write_text("none [integrity] confidentiality\n")
    with pytest.raises(Unusable, match="lockdown"):
        bindings.bind(device(system), "sysfs")


def test_failure_half_way_leaves_nothing_behind(system: FakeSystem) -> None:
    here = device(system, driver="vfio-pci")
    (here.path / "resource2").unlink()
    with pytest.raises(Unusable, match="can't be mapped"):
        bindings.bind(here, "sysfs")
    assert here.driver == "vfio-pci"
    assert (here.path / "enable").read_text() == "0\n"
    with here.claimed():
        pass


@pytest.mark.parametrize("way", ["uio", "sysfs"])
def test_device_that_goes_takes_what_was_to_be_put_back_with_it(
    system: FakeSystem, way: str
) -> None:
    here = device(system, driver="vfio-pci")
    bound = bindings.bind(here, way)
    system.unplug(HERE)
    before = len(system.writes)
    assert bound.window.view[0] == 0
    assert bound.lost
    bound.close()
    assert len(system.writes) == before


def test_device_that_went_unnoticed_is_closed_without_a_word(
    system: FakeSystem,
) -> None:
    bound = bindings.bind(device(system, driver="vfio-pci"), "uio")
    system.unplug(HERE)
    bound.close()


def test_another_in_the_place_of_one_that_goes_is_left_alone(
    system: FakeSystem,
) -> None:
    here = device(system)
    bound = bindings.bind(here, "sysfs")
    system.unplug(HERE)
    other = system.plug(HERE)
    (other / "enable").write_text("1\n")
    here.going = True
    bound.close()
    assert (other / "enable").read_text() == "1\n"


def test_driver_that_somebody_bound_meanwhile_stays(system: FakeSystem) -> None:
    system.load("vfio-pci")
    here = device(system)
    with here.bound(None):
        system.write(here.path / "driver_override", "vfio-pci")
        system.write(system.sys / "bus/pci/drivers_probe", HERE)
    assert here.driver == "vfio-pci"


@pytest.mark.parametrize("lockdown", [False, True], ids=["no lockdown", "lockdown"])
def test_position_is_found_out_and_the_device_as_before(
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


def test_device_is_complete_once_its_bars_have_addresses(system: FakeSystem) -> None:
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


def test_device_that_is_not_wanted_is_read_without_any_driver(
    system: FakeSystem,
) -> None:
    here = device(system)
    assert bindings.bind_if(here, frozenset((7,))) == (0, None)
    assert "drivers_probe" not in [name for name, _ in system.writes]


def test_device_that_is_wanted_is_bound_by_the_best_way(system: FakeSystem) -> None:
    here = device(system)
    position, bound = bindings.bind_if(here, frozenset((0, 7)))
    assert bound is not None
    assert (position, bound.binding, here.driver) == (0, "uio", "uio_pci_generic")
    with pytest.raises(Unusable, match="another vhostpci-guest"):
        bindings.bind(here)
    bound.close()
    with here.claimed():
        pass


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


def test_capability_pointer_counts_only_if_the_device_has_capabilities(
    system: FakeSystem,
) -> None:
    here = device(system)
    space = bytearray(config(3))
    space[0x06] = 0  # Status, "Capabilities List"
    (here.path / "config").write_bytes(space)
    assert here.msix_vectors == 0


def test_driver_that_another_bound_in_place_of_ours_is_not_unbound(
    system: FakeSystem,
) -> None:
    system.load("vfio-pci")
    here = device(system, driver="uio_pci_generic")
    with here.bound(None):
        system.write(here.path / "driver_override", "vfio-pci")
        system.write(system.sys / "bus/pci/drivers_probe", HERE)
    assert here.driver == "vfio-pci"


def test_claim_lasts_until_the_driver_of_before_is_bound_again(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = bindings.bind(device(system, driver="vfio-pci"), "sysfs")
    write, refused = system.write, []

    def try_to_claim(path: Path, text: str) -> None:
        with pytest.raises(Unusable, match="another vhostpci-guest"):
            search.at(HERE, system).claimed().__enter__()
        refused.append(path.name)
        write(path, text)

    monkeypatch.setattr(system, "write", try_to_claim)
    bound.close()
    assert "drivers_probe" in refused
