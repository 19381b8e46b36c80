# SPDX-License-Identifier: Apache-2.0
"""PciWatch serves the ivshmem functions that are plugged, and closes lost ones."""

import threading

import pytest

from tests.unit.guest.pci.watched_vm import A, B, C, W, WatchedVm
from vhostpci_guest.errors import Unusable
from vhostpci_guest.pci.functions import PATIENCE, RETRY, SOON
from vhostpci_guest.pci.sysfs_device import PciDevice


def test_functions_present_at_the_start_are_served(machine: WatchedVm) -> None:
    machine.plug(B)
    machine.plug(A)
    machine.start()
    assert machine.served == [A, B]


def test_plugged_function_is_served_and_unplugged_one_is_closed(
    machine: WatchedVm, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    machine.start()
    assert "waiting for one to be plugged" in caplog.text
    machine.plug(A)
    machine.look()
    assert machine.served == [A]
    machine.unplug(A)
    machine.look()
    assert machine.served == []


def test_function_is_served_while_the_binder_works_on_the_next_one(
    machine: WatchedVm,
) -> None:
    watch = machine.start()
    for address in (A, B, C):
        machine.plug(address)
    machine.look_once()
    for count in (1, 2, 3):
        assert len(machine.served) == count - 1
        machine.wait()
        machine.look_once()
        assert len(machine.served) == count
    assert watch.interval is None


def test_pci_device_that_is_not_ivshmem_is_left_alone(machine: WatchedVm) -> None:
    machine.start()
    machine.system.plug(A, device="0x1041")
    machine.events.say("add", A)
    machine.look()
    assert machine.served == []
    assert machine.system.writes == []


def test_function_plugged_at_the_address_of_another_is_served_as_a_new_one(
    machine: WatchedVm,
) -> None:
    machine.plug(A)
    machine.start()
    (first,) = machine.taken
    machine.unplug(A)
    machine.plug(A)
    machine.look()
    (second,) = machine.taken
    assert second is not first
    assert machine.enabled(A)


def test_function_without_memory_yet_is_tried_again_soon(
    machine: WatchedVm, caplog: pytest.LogCaptureFixture
) -> None:
    watch = machine.start()
    machine.plug(A, complete=False)
    machine.look()
    assert machine.served == []
    assert watch.interval == pytest.approx(SOON)
    machine.events.complete(A)
    machine.look(after=SOON)
    assert machine.served == [A]
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


def test_function_that_never_gets_memory_is_logged_once(
    machine: WatchedVm, caplog: pytest.LogCaptureFixture
) -> None:
    machine.start()
    machine.plug(A, complete=False)
    for _ in range(10):
        machine.look(after=PATIENCE)
    assert caplog.text.count(f"{A} has no memory") == 1


def test_function_of_another_agent_is_retried_every_few_seconds(
    machine: WatchedVm,
) -> None:
    machine.plug(A)
    with PciDevice(A, machine.system).claimed():
        machine.start()
        for _ in range(10):
            machine.look(after=RETRY)
    machine.look(after=RETRY)
    assert machine.served == [A]


def test_look_finds_what_changed_when_uevents_are_lost(machine: WatchedVm) -> None:
    machine.plug(A)
    machine.plug(B)
    machine.start()
    first = machine.taken[1]
    machine.unplug(A)
    machine.unplug(B)
    machine.plug(C)
    machine.plug(B)
    machine.events.overrun()
    machine.look()
    assert sorted(machine.served) == [B, C]
    assert first not in machine.taken


def test_device_whose_memory_is_lost_is_closed_and_tried_again(
    machine: WatchedVm,
) -> None:
    path = machine.plug(A)
    machine.start()
    (device,) = machine.taken
    (path / "resource2").write_bytes(b"")
    assert device.window.view[0] == 0  # a read finds the memory gone and sets the alarm
    machine.look()
    assert machine.served == []
    (path / "resource2").write_bytes(bytes(1 << 20))
    machine.look(after=RETRY)
    assert machine.served == [A]


def test_first_retry_comes_soon_for_a_device_that_was_bound_before(
    machine: WatchedVm,
) -> None:
    path = machine.plug(A)
    with PciDevice(A, machine.system).claimed():
        watch = machine.start()
        for _ in range(5):
            machine.look(after=RETRY)
    machine.look(after=RETRY)
    (device,) = machine.taken
    (path / "resource2").write_bytes(b"")
    assert device.window.view[0] == 0  # a read finds the memory gone and sets the alarm
    machine.look()
    (path / "resource2").write_bytes(bytes(1 << 20))
    with PciDevice(A, machine.system).claimed():
        machine.look(after=RETRY)
        assert machine.served == []
        assert watch.interval == pytest.approx(SOON)


def test_watch_polls_the_uevents_the_binder_and_the_alarms_of_each_device(
    machine: WatchedVm,
) -> None:
    machine.plug(A)
    watch = machine.start()
    (device,) = machine.taken
    assert set(watch.fds()) == {
        machine.events.fileno(),
        machine.binder.fileno(),
        *device.alarms(),
    }
    assert len(list(device.alarms())) == 2


def test_refused_device_is_left_alone_until_it_is_unplugged(machine: WatchedVm) -> None:
    machine.plug(A)
    watch = machine.start()
    (device,) = machine.taken
    watch.refuse(device)
    for _ in range(3):
        machine.look(after=RETRY)
    assert machine.served == []
    assert watch.interval is None
    machine.unplug(A)
    machine.plug(A)
    machine.look()
    assert machine.served == [A]


def test_only_the_named_device_and_its_windows_are_bound(machine: WatchedVm) -> None:
    machine.plug(A)
    machine.plug(B)
    machine.plug(C, W)
    machine.start(only=B)
    assert machine.served == [B]
    # The watch wrote into sysfs for one device only.
    written = [name for name, _ in machine.system.writes]
    assert written == ["driver_override", "enable"]
    windows = machine.finder()
    windows.want({W})
    machine.look()
    assert windows.find(W) is not None
    assert machine.served == [B]
    windows.want(set())


def test_unplug_of_the_only_device_ends_the_agent(machine: WatchedVm) -> None:
    machine.plug(A)
    machine.start(only=A)
    machine.unplug(A)
    with pytest.raises(Unusable, match=f"{A} is gone"):
        machine.look()


def test_look_returns_while_the_binder_works(machine: WatchedVm) -> None:
    machine.plug(A)
    watch = machine.start()
    gate = machine.slow_down(B)
    machine.plug(B)
    machine.look_once()
    assert gate.reached.wait(5)
    machine.look_once()
    assert machine.served == [A]
    assert watch.interval is None
    gate.open()
    machine.look()
    assert machine.served == [A, B]


def test_function_unplugged_during_its_bind_is_closed(
    machine: WatchedVm, caplog: pytest.LogCaptureFixture
) -> None:
    machine.start()
    gate = machine.slow_down(A)
    machine.plug(A)
    machine.look_once()
    assert gate.reached.wait(5)
    machine.unplug(A)
    machine.look_once()
    gate.open()
    machine.look(after=PATIENCE)
    assert machine.served == []
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


def test_function_replaced_during_its_bind_is_given_back(
    machine: WatchedVm,
) -> None:
    """The binder then holds the function that replaced the one it was asked for."""
    machine.start()
    gate = machine.slow_down(A)
    machine.plug(A, W)
    machine.look_once()
    assert gate.reached.wait(5)
    machine.unplug(A)
    machine.plug(A)
    machine.look_once()
    gate.open()
    machine.look()
    # The first bind keeps its claim until it is given back; only a retry succeeds.
    machine.look(after=RETRY)
    assert machine.served == [A]


def test_close_waits_for_a_bind_and_gives_the_function_back(machine: WatchedVm) -> None:
    machine.start()
    gate = machine.slow_down(A)
    machine.plug(A)
    machine.look_once()
    assert gate.reached.wait(5)
    timer = threading.Timer(0.1, gate.open)
    timer.start()
    machine.close()
    timer.join()
    assert not machine.enabled(A)
    with PciDevice(A, machine.system).claimed():
        pass
