# SPDX-License-Identifier: Apache-2.0
"""PciWatch leaves a function to another driver, and restores the driver it had."""

import pytest

from tests.unit.guest.pci.watched_vm import A, B, WatchedVm
from vhostpci_guest.errors import Unusable
from vhostpci_guest.pci import ivshmem
from vhostpci_guest.pci.functions import PATIENCE, RETRY


def test_device_of_another_driver_is_served_once_that_driver_unbinds(
    machine: WatchedVm, caplog: pytest.LogCaptureFixture
) -> None:
    machine.system.plug(A, driver="ivshmem-net")
    watch = machine.start()
    for _ in range(10):
        machine.look(after=RETRY)
    assert machine.served == []
    assert caplog.text.count("bound to ivshmem-net") == 1
    assert watch.interval == pytest.approx(RETRY)
    machine.unbind(A)
    machine.look()
    machine.look(after=PATIENCE)
    assert machine.served == [A]


@pytest.fixture
def with_module(machine: WatchedVm, monkeypatch: pytest.MonkeyPatch) -> WatchedVm:
    """Return a slave VM in which the uio_vhostpci module binds the functions."""
    machine.system.modules = ("uio_vhostpci", "vfio-pci")
    machine.bind = "kmod"
    monkeypatch.setattr(ivshmem, "_readable", machine.system.readable)
    return machine


@pytest.fixture
def unbound(with_module: WatchedVm) -> WatchedVm:
    """Return a slave VM whose device A an administrator has unbound."""
    with_module.plug(A)
    with_module.start()
    with_module.unbind(A)
    with_module.look()
    return with_module


def test_device_unbound_by_the_administrator_is_left_alone(
    unbound: WatchedVm, caplog: pytest.LogCaptureFixture
) -> None:
    assert unbound.watch is not None
    assert unbound.served == []
    for _ in range(10):
        unbound.look(after=RETRY)
    assert unbound.served == []
    assert caplog.text.count(f"{A} was taken from uio_vhostpci") == 1
    assert unbound.watch.interval == pytest.approx(RETRY)


def test_alarms_of_an_unbound_device_are_polled_no_more(with_module: WatchedVm) -> None:
    with_module.plug(A)
    watch = with_module.start()
    assert with_module.served == [A]
    alarms = set(watch.fds())
    with_module.unbind(A)
    with_module.look()
    assert set(watch.fds()) < alarms  # an alarm left in would end each poll() at once


def test_device_bound_to_another_driver_is_left_to_it(
    unbound: WatchedVm, caplog: pytest.LogCaptureFixture
) -> None:
    unbound.probe(A, "vfio-pci")
    unbound.look(after=RETRY)
    assert unbound.served == []
    assert "its driver now: vfio-pci" in caplog.text


def test_device_bound_to_our_driver_again_is_served_again(
    unbound: WatchedVm,
) -> None:
    unbound.probe(A, "uio_vhostpci")
    unbound.look()
    unbound.look(after=PATIENCE)
    assert unbound.served == [A]


def test_new_device_at_the_address_of_an_unbound_one_is_served(
    unbound: WatchedVm,
) -> None:
    unbound.unplug(A)
    unbound.plug(A)
    unbound.look()
    assert unbound.served == [A]


def test_unbinding_the_only_device_ends_the_agent(
    with_module: WatchedVm,
) -> None:
    with_module.plug(A)
    with_module.start(only=A)
    with_module.unbind(A)
    with pytest.raises(Unusable, match="was taken from its driver"):
        with_module.look()


def test_only_device_held_by_another_driver_ends_the_agent(machine: WatchedVm) -> None:
    machine.system.plug(A, driver="ivshmem-net")
    with pytest.raises(Unusable, match="bound to ivshmem-net"):
        machine.start(only=A)


def test_device_that_cannot_be_restored_leaves_other_devices_served(
    machine: WatchedVm, caplog: pytest.LogCaptureFixture
) -> None:
    machine.system.plug(A, driver="vfio-pci")
    machine.events.say("add", A)
    machine.plug(B)
    watch = machine.start()
    first = next(device for device in machine.taken if device.name == A)
    machine.system.deaf = {"vfio-pci"}
    watch.refuse(first)
    machine.look()
    assert "vfio-pci does not take" in caplog.text
    assert machine.served == [B]


def test_device_that_cannot_be_restored_on_close_is_an_error(
    machine: WatchedVm,
) -> None:
    machine.system.plug(A, driver="vfio-pci")
    machine.plug(B)
    machine.start()
    machine.system.deaf = {"vfio-pci"}
    with pytest.raises(Unusable, match="vfio-pci does not take"):
        machine.close()
    assert not machine.enabled(B)
