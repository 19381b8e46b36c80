# SPDX-License-Identifier: Apache-2.0
"""Binding a device through sysfs or UIO: which way, its window, its end."""

import errno
import mmap
import os
import struct
from pathlib import Path

import pytest

from tests.fakes.sysfs import BAR2, FakeSystem
from tests.unit.guest.pci.plugged import HERE, device
from vhostpci_guest.dataplane.mapping import Mapping
from vhostpci_guest.errors import Unusable
from vhostpci_guest.pci import bindings, search, sysfs


def test_vfio_group_that_a_process_has_open_is_left_alone(system: FakeSystem) -> None:
    here = device(system, driver="vfio-pci", group="3")
    system.opened("vfio/3", pid=77, name="qemu")
    with pytest.raises(Unusable, match=r"in use by qemu \(77\)"):
        bindings.bind(here)


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


@pytest.mark.parametrize("way", ["uio", "sysfs"])
def test_another_process_can_map_the_windows_file_until_the_close(
    system: FakeSystem, way: str
) -> None:
    bound = bindings.bind(device(system), way)
    file = bound.window.file
    assert file is not None
    assert not os.get_inheritable(file.fd)
    with mmap.mmap(file.fd, BAR2, offset=file.offset) as theirs:
        theirs[7] = 9
        assert bound.window.view[7] == 9
    bound.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.fd)


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


def test_auto_takes_the_best_that_works_and_logs_why_no_better_one(
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


def test_error_says_what_a_binding_lacks(system: FakeSystem) -> None:
    with pytest.raises(Unusable, match=r"not vfio: .*-device intel-iommu,intremap=on"):
        bindings.bind(device(system), "vfio")


def test_error_without_root_says_to_run_as_root(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str, claim: int | None = None) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(system, "write", refuse)
    with pytest.raises(Unusable, match="run as root"):
        bindings.bind(device(system))


def test_lockdown_is_named_as_the_reason(system: FakeSystem) -> None:
    path = system.sys / "kernel/security"
    path.mkdir(parents=True)
    (path / "lockdown").write_text("none [integrity] confidentiality\n")
    with pytest.raises(Unusable, match="lockdown"):
        bindings.bind(device(system), "sysfs")


def test_failed_bind_restores_the_device(system: FakeSystem) -> None:
    here = device(system, driver="vfio-pci")
    (here.path / "resource2").unlink()
    with pytest.raises(Unusable, match="can't be mapped"):
        bindings.bind(here, "sysfs")
    assert here.driver == "vfio-pci"
    assert (here.path / "enable").read_text() == "0\n"
    with here.claimed():
        pass


@pytest.mark.parametrize("way", ["uio", "sysfs"])
def test_device_that_cannot_be_mapped_for_lack_of_memory_is_given_back(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    class NoMemory(Mapping):
        def __init__(self, fd: int, size: int, **_: int) -> None:
            if size == BAR2:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            super().__init__(fd, size)

    here = device(system, driver="vfio-pci")
    monkeypatch.setattr(sysfs, "Mapping", NoMemory)
    with pytest.raises(Unusable, match="can't be mapped: Cannot allocate memory"):
        bindings.bind(here, way)
    assert here.driver == "vfio-pci"
    with here.claimed():
        pass


@pytest.mark.parametrize("way", ["uio", "sysfs"])
@pytest.mark.parametrize("keep", [None, frozenset((0,))])
def test_read_only_sysfs_is_named_as_the_reason(
    system: FakeSystem,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    keep: frozenset[int] | None,
) -> None:
    """As Docker mounts it."""

    def refuse(path: Path, text: str, claim: int | None = None) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    here = device(system)
    monkeypatch.setattr(system, "write", refuse)
    with pytest.raises(Unusable, match="read-only, as in a container"):
        bindings.bind_if(here, keep, way)
    with here.claimed():
        pass


@pytest.mark.parametrize("way", ["uio", "sysfs"])
def test_close_of_an_unplugged_device_writes_nothing(
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


def test_close_of_a_device_that_was_unplugged_unnoticed_succeeds(
    system: FakeSystem,
) -> None:
    bound = bindings.bind(device(system, driver="vfio-pci"), "uio")
    system.unplug(HERE)
    bound.close()


def test_close_leaves_a_new_device_at_the_same_address_alone(
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


def test_claim_lasts_until_the_driver_of_before_is_bound_again(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = bindings.bind(device(system, driver="vfio-pci"), "sysfs")
    write, refused = system.write, []

    def try_to_claim(path: Path, text: str, claim: int | None = None) -> None:
        with pytest.raises(Unusable, match="another vhostpci-guest"):
            search.at(HERE, system).claimed().__enter__()
        refused.append(path.name)
        write(path, text)

    monkeypatch.setattr(system, "write", try_to_claim)
    bound.close()
    assert "drivers_probe" in refused
