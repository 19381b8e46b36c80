# SPDX-License-Identifier: Apache-2.0
"""The device through uio_vhostpci, as a fake kernel has it."""

import os
import select
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.sysfs import BAR2, FakeSystem, config
from tests.unit.guest.pci.plugged import HERE, position
from vhostpci_guest.errors import Unusable
from vhostpci_guest.pci import bindings, ivshmem, search
from vhostpci_guest.pci.ivshmem import PciBound
from vhostpci_guest.pci.position import find_position
from vhostpci_guest.pci.sysfs_device import PciDevice

DRIVER = "uio_vhostpci"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    system = FakeSystem(tmp_path, DRIVER, "uio_pci_generic")
    monkeypatch.setattr(ivshmem, "_readable", system.readable)
    return system


@pytest.fixture
def here(system: FakeSystem) -> PciDevice:
    """A device with IVPosition 42 and five vectors."""
    path = system.plug(HERE, vectors=5)
    (path / "resource0").write_bytes(struct.pack("<8xI244x", 42))
    return search.at(HERE, system)


@pytest.fixture
def bound(here: PciDevice) -> Iterator[PciBound]:
    bound = bindings.bind(here, "kmod")
    yield bound
    bound.close()


def lock_down(system: FakeSystem) -> None:
    path = system.sys / "kernel/security"
    path.mkdir(parents=True)
    (path / "lockdown").write_text("none [integrity] confidentiality\n")


def why_not(here: PciDevice) -> str:
    """Why a device cannot be bound this way."""
    with pytest.raises(Unusable) as why:
        bindings.bind(here, "kmod")
    return str(why.value)


def test_device_is_bound_and_unbound_again(here: PciDevice) -> None:
    bound = bindings.bind(here, "kmod")
    assert here.driver == DRIVER
    assert bound.window.id == 42
    assert bound.window.size == BAR2
    assert not bound.lost
    bound.close()
    assert here.driver is None


def test_device_that_the_kernel_bound_by_itself_stays_bound(
    system: FakeSystem, here: PciDevice
) -> None:
    system.load_now(DRIVER)
    with here.bound(DRIVER):
        bindings.bind(here, "kmod").close()
        assert here.driver == DRIVER
        assert "unbind" not in [name for name, _ in system.writes]


def test_each_vector_signals_its_own_eventfd(
    system: FakeSystem, bound: PciBound
) -> None:
    fds = [bound.vector(vector) for vector in range(5)]
    assert system.armed("uio0") == list(enumerate(fds))
    assert len(set(fds)) == bound.vector_count == 5
    assert bound.vector(5) is None


def test_window_and_doorbell_are_mapped_from_the_node(
    system: FakeSystem, bound: PciBound
) -> None:
    bound.window.view[7] = 9
    bound.ring(3, 2)
    node = (system.dev / "uio0").read_bytes()
    assert node[4096 + 7] == 9
    assert node[12:16] == struct.pack("<I", 0x30002)


def test_registers_may_begin_in_the_middle_of_a_page(system: FakeSystem) -> None:
    path = system.plug(HERE, skip=0x300)
    (path / "resource0").write_bytes(struct.pack("<8xI244x", 4711))
    bound = bindings.bind(search.at(HERE, system), "kmod")
    assert bound.window.id == 4711
    bound.close()


def test_device_that_another_unbinds_is_lost_and_not_restored(
    system: FakeSystem, here: PciDevice
) -> None:
    bound = bindings.bind(here, "kmod")
    (node,) = [fd for fd in bound.alarms() if fd not in fds_of_mappings(bound)]
    assert Path(os.readlink(f"/proc/self/fd/{node}")) == system.dev / "uio0"
    system.write(here.path / "driver/unbind", HERE)
    assert bound.lost
    bound.close()
    assert here.driver is None


def fds_of_mappings(bound: PciBound) -> list[int]:
    return [mapping.fileno() for mapping in bound._mappings]


def test_hang_up_of_the_node_is_an_alarm() -> None:
    """A UIO node without its device polls as an error, and not as readable."""
    read, write = os.pipe()
    assert not ivshmem._readable(read)
    os.close(write)
    poll = select.poll()
    poll.register(read, select.POLLIN)
    assert poll.poll(0) == [(read, select.POLLHUP)]
    assert ivshmem._readable(read)
    os.close(read)


def test_auto_prefers_the_module(
    here: PciDevice, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bound = bindings.bind(here)
    bound.close()
    assert "bound by kmod (interrupts, cached)" in caplog.text


def test_lockdown_does_not_prevent_a_bind_by_the_module(
    system: FakeSystem, here: PciDevice
) -> None:
    lock_down(system)
    bound = bindings.bind(here)
    assert bound.binding == "kmod"
    bound.close()


# Failures, and what the error says.


def test_auto_takes_another_way_if_the_module_is_refused(
    system: FakeSystem, here: PciDevice
) -> None:
    system.refusals[DRIVER] = "Key was rejected by service"
    bound = bindings.bind(here)
    assert bound.binding == "uio"
    bound.close()


def test_error_of_a_module_that_refuses_the_device_names_dmesg(
    system: FakeSystem, here: PciDevice
) -> None:
    system.deaf = {DRIVER}
    assert f"{DRIVER} does not take {HERE}; see dmesg" in why_not(here)


def test_device_without_vectors_is_refused_before_it_is_bound(
    system: FakeSystem, here: PciDevice
) -> None:
    (here.path / "config").write_bytes(config(0))
    assert "ivshmem-doorbell" in why_not(here)
    assert system.writes == []


def test_window_of_less_than_a_page_is_refused_before_it_is_bound(
    system: FakeSystem, here: PciDevice
) -> None:
    lines = (here.path / "resource").read_text().splitlines()
    lines[2] = f"{1 << 32:#x} {(1 << 32) + 0x7FF:#x} 0x0"
    (here.path / "resource").write_text("\n".join(lines))
    assert "BAR 2 has 2048 bytes" in why_not(here)
    assert system.writes == []


def test_missing_node_of_the_driver_is_reported(
    system: FakeSystem, here: PciDevice
) -> None:
    system.load_now(DRIVER)
    with here.bound(DRIVER):
        (system.dev / "uio0").rename(system.dev / "hidden")
        assert "mount devtmpfs" in why_not(here)
        (system.dev / "hidden").rename(system.dev / "uio0")


def test_two_agents_never_share_a_device(here: PciDevice, bound: PciBound) -> None:
    with pytest.raises(Unusable, match="another vhostpci-guest"):
        bindings.bind(here, "kmod")


def test_process_that_has_the_node_is_named(
    system: FakeSystem, here: PciDevice
) -> None:
    system.load_now(DRIVER)
    with here.bound(DRIVER):
        system.opened("uio0", pid=77, name="testpmd")
        assert "in use by testpmd (77)" in why_not(here)


@pytest.mark.parametrize("way", ["auto", "kmod", "sysfs"])
def test_device_of_a_hidden_process_is_left_alone(
    system: FakeSystem, here: PciDevice, way: str
) -> None:
    system.load_now(DRIVER)
    with here.bound(DRIVER):
        system.busy.add("uio0")
        before = list(system.writes)
        with pytest.raises(Unusable, match="hidden from us"):
            bindings.bind(here, way)
        with pytest.raises(Unusable, match="hidden from us"):
            position(here)
        assert system.writes == before


def test_node_that_a_hidden_process_opened_since_the_claim_is_refused(
    system: FakeSystem, here: PciDevice
) -> None:
    system.load_now(DRIVER)
    with here.bound(DRIVER), here.claimed():
        system.busy.add("uio0")
        with pytest.raises(Unusable, match="hidden from us"):
            here.uio_node().__enter__()


@pytest.mark.parametrize(
    ("number", "why"),
    [(38, "older than the agent"), (22, "refuses vector 0: Invalid argument")],
)
def test_module_that_arms_no_vector_is_refused(
    here: PciDevice, monkeypatch: pytest.MonkeyPatch, number: int, why: str
) -> None:
    def refuse(fd: int, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", refuse)
    assert why in why_not(here)
    assert here.driver is None


def test_window_below_4_gib_is_a_warning(
    system: FakeSystem, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    system.low = True
    system.plug(HERE)
    bindings.bind(search.at(HERE, system), "kmod").close()
    assert "uncached (BAR 2 below 4 GiB)" in caplog.text
    assert "give the master 512 MiB of memory or more" in caplog.text


def test_window_with_the_metadata_alone_may_be_below_4_gib(
    system: FakeSystem, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    system.low = True
    path = system.plug(HERE)
    lines = (path / "resource").read_text().splitlines()
    lines[2] = f"{1 << 31:#x} {(1 << 31) + 0xFFFF:#x} 0x0"
    (path / "resource").write_text("\n".join(lines))
    bindings.bind(search.at(HERE, system), "kmod").close()
    assert caplog.text == ""


# Reading the IVPosition, without binding the device.


def test_position_is_read_through_the_node_of_the_driver(
    system: FakeSystem, here: PciDevice
) -> None:
    system.load_now(DRIVER)
    with here.bound(DRIVER):
        before = list(system.writes)
        assert position(here) == find_position(here) == 42
        assert system.writes == before


def test_position_of_a_device_that_an_agent_has_is_unknown(
    here: PciDevice, system: FakeSystem, bound: PciBound
) -> None:
    system.busy.add("uio0")
    assert find_position(here) is None
    with pytest.raises(Unusable, match="another vhostpci-guest"):
        position(here)
