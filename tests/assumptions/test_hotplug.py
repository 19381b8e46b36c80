# SPDX-License-Identifier: Apache-2.0
"""What hot-plug relies on: QEMU's root ports, and the kernel of a Debian guest.

test (ivshmem server) ──unix socket──► QEMU ◄──QMP── test
                                        guest: Debian's kernel, no daemon
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import qemu
from tests.vm.bare_slave import Slave, clear_handlers, started
from tests.vm.harness import Vm
from tests.vm.qmp import QmpError
from tests.waiting import wait_for

pytestmark = pytest.mark.vm

MIB = 2**20
SMALL = [
    *("-device", "pcie-root-port,id=small,chassis=8,slot=8"),
    *("-device", "pcie-root-port,id=crowded,chassis=9,slot=9"),
]
"""Root ports without `pref64-reserve`."""


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slave]:
    """A VM with two root ports that have a reserve, and two that have none."""
    logs = tmp_path_factory.mktemp("hotplug")
    with started(logs, [*qemu.ports(2), *SMALL]) as slave:
        yield slave


@pytest.fixture
def slave(booted: Slave) -> Iterator[Slave]:
    """The same, with nothing plugged."""
    yield booted
    booted.close()


def test_root_ports_with_a_reserve_take_large_windows(slave: Slave) -> None:
    """So the slave's root ports have a reserve of the largest master's size."""
    slave.plug(300, 512 * MIB, "port0")
    slave.plug(301, 1024 * MIB, "port1")
    there = slave.wait_windows(300, 301)
    assert there[300][1] == 512 * MIB
    assert there[301][1] == 1024 * MIB


def test_large_window_in_a_root_port_without_reserve_has_no_address(
    slave: Slave,
) -> None:
    """So plugging.md asks for a reserve, and the daemon looks at the result."""
    slave.plug(300, 512 * MIB, "small")
    assert slave.wait_windows(300)[300][1] == 0


def test_second_device_in_a_root_port_is_refused_or_never_seen(slave: Slave) -> None:
    """So the daemon looks for an empty root port: QEMU 7.2 does not refuse a full one.

    It gives the second device another slot, where the guest does not look; QEMU 10.0
    and 11 have no other slot behind a root port.
    """
    slave.plug(398, MIB, "crowded")
    if qemu.version().startswith("7."):
        slave.plug(399, MIB, "crowded")
        # Unplugging the other one removes it too, without an event.
        del slave.vectors[399]
    else:
        with pytest.raises(QmpError, match="slot 0 function 0 already occupied"):
            slave.plug(399, MIB, "crowded")
    slave.wait_windows(398)
    time.sleep(1)
    assert 399 not in slave.windows()


def test_window_that_is_mapped_from_sysfs_is_unplugged_at_once(slave: Slave) -> None:
    """So the agent must survive that: nothing is behind its mapping then."""
    slave.plug(300, 256 * MIB, "port0")
    job = slave.hold(300, "sysfs")
    slave.ask_back(300)
    assert slave.goes(300)
    job.stop()


def test_window_that_vfio_has_open_delays_every_other_unplug(slave: Slave) -> None:
    """So the agent closes a window before it is asked to, or when vfio asks it to."""
    slave.plug(300, 256 * MIB, "port0")
    slave.plug(301, 256 * MIB, "port1")
    job = slave.hold(300, "vfio")
    slave.ask_back(300)
    assert not slave.goes(300, timeout=2)
    slave.ask_back(301)
    assert not slave.goes(301, timeout=1)
    job.stop()
    assert slave.goes(300)
    assert slave.goes(301)


@pytest.mark.skipif(qemu.has_kvm(), reason="with KVM the vectors have no handlers")
def test_handlers_of_unplugged_vectors_stay_until_a_netdev_removes_them(
    slave: Slave,
) -> None:
    """So without KVM the daemon adds and removes a netdev after each unplug.

    ivshmem watches its own vectors' eventfds (ivshmem-pci.c, watch_vector_notifier),
    and closes them without an end to that.  The event loop then spins, and the next
    descriptor of that number, once readable, has QEMU use freed memory.  QEMU 11
    watches by io_uring where Linux has it: nothing spins then, and the closed eventfds
    themselves, when signalled, have QEMU use freed memory.
    """
    slave.plug(300, MIB, "port0", vectors=3)
    slave.wait_windows(300)
    slave.ask_back(300)
    assert slave.is_released(300)
    spinning = busy(slave.vm)
    clear_handlers(slave.monitor)
    if not uses_io_uring(slave.vm):
        assert spinning > 0.1
        wait_for(lambda: busy(slave.vm) < spinning / 2, "the event loop sleeps")
    for eventfd in slave.vectors[300]:
        os.eventfd_write(eventfd, 1)
    slave.forget(300)  # QEMU's event loop has turned when this is answered
    assert slave.vm.is_running()


def uses_io_uring(vm: Vm) -> bool:
    """Whether QEMU has an io_uring, as its event loop has from version 11 on."""
    descriptors = Path(f"/proc/{vm.pid}/fd").iterdir()
    return any("io_uring" in os.readlink(path) for path in descriptors)


def busy(vm: Vm) -> float:
    """Return what part of a second QEMU's event loop did not sleep.

    It runs in the main thread.  What counts is also the time in which it was ready and
    waited for a processor, so that the answer is the same on a loaded machine.
    """
    start, before = time.monotonic(), awake(vm)
    time.sleep(1)
    return (awake(vm) - before) / (time.monotonic() - start)


def awake(vm: Vm) -> float:
    """Return the seconds in which QEMU's main thread ran or waited for a processor."""
    schedstat = Path(f"/proc/{vm.pid}/task/{vm.pid}/schedstat").read_text()
    ran, waited, _ = map(int, schedstat.split())
    return (ran + waited) / 1e9


def test_i440fx_takes_windows_side_by_side(tmp_path: Path) -> None:
    """All slots of its bus are hot-pluggable, and the 64-bit hole is 2 GiB."""
    with started(tmp_path, [], "pc") as slave:
        slave.plug(300, 512 * MIB, "pci.0")
        slave.plug(301, 1024 * MIB, "pci.0")
        there = slave.wait_windows(300, 301)
        assert there[300][1] == 512 * MIB
        assert there[301][1] == 1024 * MIB
