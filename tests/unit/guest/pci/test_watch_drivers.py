# SPDX-License-Identifier: Apache-2.0
"""PciWatch leaves a function to another driver, and restores the driver it had."""

import pytest

from tests.unit.guest.pci.watched_vm import A, B, WatchedVm
from vhostpci_guest.errors import Unusable
from vhostpci_guest.pci import ivshmem as device_module
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
    monkeypatch.setattr(device_module, "_readable", machine.system.readable)
    return machine


def test_device_unbound_by_the_administrator_is_left_alone(
    with_module: WatchedVm, caplog: pytest.LogCaptureFixture
) -> None:
    machine = with_module
    machine.plug(A)
    watch = machine.start()
    assert machine.served == [A]
    alarms = set(watch.fds())
    machine.unbind(A)
    machine.look()
    assert machine.served == []
    assert set(watch.fds()) < alarms  # an alarm left in would end each poll() at once
    for _ in range(10):
        machine.look(after=RETRY)
    assert machine.served == []
    assert caplog.text.count(f"{A} was taken from uio_vhostpci") == 1
    assert watch.interval == pytest.approx(RETRY)


def test_device_bound_to_another_driver_is_left_to_it(
    with_module: WatchedVm, caplog: pytest.LogCaptureFixture
) -> None:
    machine = with_module
    machine.plug(A)
    machine.start()
    machine.unbind(A)
    machine.look()
    machine.probe(A, "vfio-pci")
    machine.look(after=RETRY)
    assert machine.served == []
    assert "its driver now: vfio-pci" in caplog.text


def test_device_bound_to_our_driver_again_is_served_again(
    with_module: WatchedVm,
) -> None:
    machine = with_module
    machine.plug(A)
    machine.start()
    machine.unbind(A)
    machine.look()
    machine.probe(A, "uio_vhostpci")
    machine.look()
    machine.look(after=PATIENCE)
    assert machine.served == [A]


def test_new_device_at_the_address_of_an_unbound_one_is_served(
    with_module: WatchedVm,
) -> None:
    machine = with_module
    machine.plug(A)
    machine.start()
    machine.unbind(A)
    machine.look()
    machine.unplug(A)
    machine.plug(A)
    machine.look()
    assert machine.served == [A]


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
