# SPDX-License-Identifier: Apache-2.0
"""PCI devices that come and go: which are served, which are windows, which are lost."""

import select
import threading
from collections.abc import Callable, Iterator, Set
from pathlib import Path

import pytest

from tests.fakes.clock import Clock
from tests.fakes.sysfs import FakeSystem
from tests.fakes.uevents import FakeEvents
from vhostpci_guest.errors import Unusable
from vhostpci_guest.interfaces import Device, Windows
from vhostpci_guest.pci import bindings
from vhostpci_guest.pci import ivshmem as device_module
from vhostpci_guest.pci.binder import Binder
from vhostpci_guest.pci.ivshmem import PciBound
from vhostpci_guest.pci.sysfs_device import PciDevice
from vhostpci_guest.pci.watch import PATIENCE, RETRY, SOON, PciWatch

A, B, C, D = (f"0000:00:0{n}.0" for n in range(4, 8))
W = 4711


class Gate:
    """Lets the binder's thread go on when the test says so."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._opened = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self._opened.wait(10), "the test never opened the gate"

    def open(self) -> None:
        self._opened.set()


class Machine:
    """A slave VM; its devices are bound without a driver."""

    def __init__(self, root: Path) -> None:
        self.system = FakeSystem(root)
        self.events = FakeEvents(self.system)
        self.plug = self.events.plug
        self.unplug = self.events.unplug
        self.clock = Clock()
        self.taken: list[Device] = []
        self.watch: PciWatch | None = None
        self.binder = Binder()
        self.bind = "sysfs"
        self.attempts: list[str] = []
        """Addresses of the functions that were bound, or only read."""
        self.before_bind: Callable[[PciDevice], None] = lambda _pci: None
        """Is called on the binder's thread before it binds."""

    def bind_if(
        self, pci: PciDevice, keep: Set[int] | None
    ) -> tuple[int, PciBound | None]:
        """Bind a function as the agent does."""
        self.attempts.append(pci.address)
        self.before_bind(pci)
        return bindings.bind_if(pci, keep, self.bind)

    def slow_down(self, address: str) -> Gate:
        """Hold the binder up at one function."""
        gate = Gate()

        def wait(pci: PciDevice) -> None:
            if pci.address == address:
                gate()

        self.before_bind = wait
        return gate

    def start(self, only: str | None = None) -> PciWatch:
        """Start the watch, and let it look."""
        self.watch = PciWatch(
            self.events,
            self.bind_if,
            only=only,
            binder=self.binder,
            system=self.system,
            now=self.clock,
        )
        self.look()
        return self.watch

    def look(self, after: float = 0.0) -> None:
        """Look until the binder has finished, and take what is to be served."""
        self.clock.seconds += after
        self.look_once()
        assert self.watch is not None
        while self.watch.interval == 0 or self.binder.pending:
            self.wait()
            self.look_once()

    def wait(self) -> None:
        """Wait until the binder has a result, if it works on anything."""
        if self.binder.pending:
            assert select.select([self.binder], [], [], 5)[0] == [self.binder]

    def look_once(self) -> None:
        """Look, and take what is to be served, as the agent does."""
        assert self.watch is not None
        self.watch.look()
        there = list(self.watch.devices())
        for device in [device for device in self.taken if device not in there]:
            self.taken.remove(device)
            self.watch.give_back(device)
        self.taken += [device for device in there if device not in self.taken]

    @property
    def served(self) -> list[str]:
        """Addresses of the devices that are served."""
        return [device.name for device in self.taken]

    def unbind(self, address: str) -> None:
        """Take a device from its driver."""
        path = self.system.sys / "bus/pci/devices" / address
        self.system.write(path / "driver/unbind", address)
        self.events.say("unbind", address)

    def probe(self, address: str, driver: str) -> None:
        """Give a device to a driver."""
        path = self.system.sys / "bus/pci/devices" / address
        self.system.load_now(driver)
        self.system.write(path / "driver_override", driver)
        self.system.write(self.system.sys / "bus/pci/drivers_probe", address)
        self.system.write(path / "driver_override", "\n")
        self.events.say("bind", address)

    def enabled(self, address: str) -> bool:
        """Whether somebody has a device."""
        path = self.system.sys / "bus/pci/devices" / address / "enable"
        return path.read_text() == "1\n"

    def finder(self) -> Windows:
        """What the link of the first device finds its windows by."""
        assert self.watch is not None
        return self.watch.windows(self.taken[0])

    def close(self) -> None:
        """End the agent, unless it has ended."""
        if self.events.closed:
            return
        if self.watch is not None:
            for device in self.taken:
                self.watch.give_back(device)
            self.watch.close()
        else:
            self.binder.close()
            self.events.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.close()


def test_all_that_is_there_is_served(machine: Machine) -> None:
    machine.plug(B)
    machine.plug(A)
    machine.start()
    assert machine.served == [A, B]


def test_device_that_comes_is_served_and_one_that_goes_is_closed(
    machine: Machine, caplog: pytest.LogCaptureFixture
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


def test_others_are_served_between_two_that_come(machine: Machine) -> None:
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


def test_device_of_another_kind_is_left_alone(machine: Machine) -> None:
    machine.start()
    machine.system.plug(A, device="0x1041")
    machine.events.say("add", A)
    machine.look()
    assert machine.served == []
    assert machine.system.writes == []


def test_device_in_the_place_of_another_is_another(machine: Machine) -> None:
    machine.plug(A)
    machine.start()
    (first,) = machine.taken
    machine.unplug(A)
    machine.plug(A)
    machine.look()
    (second,) = machine.taken
    assert second is not first
    assert machine.enabled(A)


def test_device_that_is_not_complete_yet_is_tried_again_soon(
    machine: Machine, caplog: pytest.LogCaptureFixture
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


def test_device_that_stays_incomplete_is_said_once(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.start()
    machine.plug(A, complete=False)
    for _ in range(10):
        machine.look(after=PATIENCE)
    assert caplog.text.count(f"{A} has no memory") == 1


def test_device_of_another_driver_is_taken_when_that_lets_go(
    machine: Machine, caplog: pytest.LogCaptureFixture
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


def test_what_is_left_alone_is_looked_at_every_few_seconds(machine: Machine) -> None:
    machine.plug(A)
    with PciDevice(A, machine.system).claimed():
        machine.start()
        for _ in range(10):
            machine.look(after=RETRY)
    machine.look(after=RETRY)
    assert machine.served == [A]


def test_lost_events_are_made_up_for(machine: Machine) -> None:
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


def test_window_is_bound_only_while_it_is_wanted(machine: Machine) -> None:
    machine.plug(A)
    machine.plug(B, W)
    watch = machine.start()
    assert machine.served == [A]
    assert not machine.enabled(B)
    assert watch.interval is None
    windows = machine.finder()
    windows.want({W})
    assert watch.interval == 0
    machine.look()
    window = windows.find(W)
    assert window is not None
    assert window.id == W
    windows.want(set())
    assert windows.find(W) is None
    machine.look()
    assert not machine.enabled(B)


def test_window_may_come_after_it_is_wanted(machine: Machine) -> None:
    machine.plug(A)
    machine.start()
    windows = machine.finder()
    windows.want({W})
    machine.look()
    assert windows.find(W) is None
    machine.plug(B, W)
    machine.look()
    assert windows.find(W) is not None
    windows.want(set())


def test_window_that_is_let_go_may_be_wanted_again(machine: Machine) -> None:
    machine.plug(A)
    machine.plug(B, W)
    machine.start()
    windows = machine.finder()
    for _ in range(2):
        windows.want({W})
        machine.look()
        assert windows.find(W) is not None
        windows.want(set())


def test_window_that_is_unplugged_stays_mapped_until_it_is_let_go(
    machine: Machine,
) -> None:
    machine.plug(A)
    machine.plug(B, W)
    machine.start()
    windows = machine.finder()
    windows.want({W})
    machine.look()
    window = windows.find(W)
    assert window is not None
    machine.unplug(B)
    machine.look()
    assert windows.find(W) is None
    assert window.view[0] == 0
    windows.want({W})
    machine.look()
    with pytest.raises(ValueError, match="released"):
        _ = window.view[0]
    windows.want(set())


def test_window_of_two_links_is_let_go_by_both(machine: Machine) -> None:
    machine.plug(A)
    machine.plug(B, W)
    machine.start()
    links = [machine.finder(), machine.finder()]
    for windows in links:
        windows.want({W})
    machine.look()
    window = links[0].find(W)
    assert window is not None
    links[0].want(set())
    assert links[1].find(W) is window
    machine.unplug(B)
    machine.look()
    assert window.view[0] == 0
    links[1].want(set())
    machine.look()
    with pytest.raises(ValueError, match="released"):
        _ = window.view[0]


def test_lost_window_of_two_links_stays_mapped_until_both_have_stopped(
    machine: Machine,
) -> None:
    machine.plug(A)
    machine.plug(B, W)
    machine.start()
    links = [machine.finder(), machine.finder()]
    for windows in links:
        windows.want({W})
    machine.look()
    window = links[0].find(W)
    assert window is not None
    machine.unplug(B)
    machine.look()
    links[0].want(set())
    machine.look()
    assert window.view[0] == 0
    links[1].want(set())
    machine.look()
    with pytest.raises(ValueError, match="released"):
        _ = window.view[0]


def test_two_windows_of_one_number_are_both_refused(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.plug(A)
    machine.plug(B, W)
    machine.start()
    windows = machine.finder()
    windows.want({W})
    machine.look()
    window = windows.find(W)
    assert window is not None
    machine.plug(C, W)
    machine.look()
    machine.look()
    assert windows.find(W) is None
    assert window.view[0] == 0  # a ring may still be there
    assert caplog.text.count(f"{B}, {C} have IVPosition 4711") == 1
    windows.want({W})
    machine.look()
    assert not machine.enabled(B)
    assert not machine.enabled(C)
    machine.unplug(B)
    machine.look()
    machine.look()
    assert windows.find(W) is not None
    windows.want(set())


def test_device_that_is_wanted_back_is_closed_and_looked_at_again(
    machine: Machine,
) -> None:
    path = machine.plug(A)
    machine.start()
    (device,) = machine.taken
    (path / "resource2").write_bytes(b"")
    assert device.window.view[0] == 0  # as somebody finds out
    machine.look()
    assert machine.served == []
    (path / "resource2").write_bytes(bytes(1 << 20))
    machine.look(after=RETRY)
    assert machine.served == [A]


def test_pause_is_short_again_once_a_device_was_bound(machine: Machine) -> None:
    path = machine.plug(A)
    with PciDevice(A, machine.system).claimed():
        watch = machine.start()
        for _ in range(5):
            machine.look(after=RETRY)
    machine.look(after=RETRY)
    (device,) = machine.taken
    (path / "resource2").write_bytes(b"")
    assert device.window.view[0] == 0  # so that the loss is noticed
    machine.look()
    (path / "resource2").write_bytes(bytes(1 << 20))
    with PciDevice(A, machine.system).claimed():
        machine.look(after=RETRY)
        assert machine.served == []
        assert watch.interval == pytest.approx(SOON)


@pytest.fixture
def with_module(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """The same, where uio_vhostpci binds the devices."""
    machine.system.modules = ("uio_vhostpci", "vfio-pci")
    machine.bind = "kmod"
    monkeypatch.setattr(device_module, "_readable", machine.system.readable)
    return machine


def test_device_that_was_taken_from_its_driver_is_left_alone(
    with_module: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine = with_module
    machine.plug(A)
    watch = machine.start()
    assert machine.served == [A]
    alarms = set(watch.fds())
    machine.unbind(A)
    machine.look()
    assert machine.served == []
    assert set(watch.fds()) < alarms  # one that is readable for ever wakes nobody
    for _ in range(10):
        machine.look(after=RETRY)
    assert machine.served == []
    assert caplog.text.count(f"{A} was taken from uio_vhostpci") == 1
    assert watch.interval == pytest.approx(RETRY)


def test_device_that_was_given_to_another_driver_is_left_to_it(
    with_module: Machine, caplog: pytest.LogCaptureFixture
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


def test_device_that_is_given_back_to_its_driver_is_served_again(
    with_module: Machine,
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


def test_another_in_the_place_of_one_that_was_taken_is_served(
    with_module: Machine,
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


def test_only_device_that_is_taken_from_its_driver_ends_us(
    with_module: Machine,
) -> None:
    with_module.plug(A)
    with_module.start(only=A)
    with_module.unbind(A)
    with pytest.raises(Unusable, match="was taken from its driver"):
        with_module.look()


def test_loss_wakes_the_loop(machine: Machine) -> None:
    machine.plug(A)
    watch = machine.start()
    (device,) = machine.taken
    assert set(watch.fds()) == {
        machine.events.fileno(),
        machine.binder.fileno(),
        *device.alarms(),
    }
    assert len(list(device.alarms())) == 2


def test_device_that_is_refused_is_left_alone_until_it_goes(machine: Machine) -> None:
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


def test_only_device_is_served_alone_with_its_windows(machine: Machine) -> None:
    machine.plug(A)
    machine.plug(B)
    machine.plug(C, W)
    machine.start(only=B)
    assert machine.served == [B]
    # Nobody else's device was touched.
    written = [name for name, _ in machine.system.writes]
    assert written == ["driver_override", "enable"]
    windows = machine.finder()
    windows.want({W})
    machine.look()
    assert windows.find(W) is not None
    assert machine.served == [B]
    windows.want(set())


def test_only_device_that_goes_ends_us(machine: Machine) -> None:
    machine.plug(A)
    machine.start(only=A)
    machine.unplug(A)
    with pytest.raises(Unusable, match=f"{A} is gone"):
        machine.look()


def test_only_device_that_cannot_be_had_ends_us(machine: Machine) -> None:
    machine.system.plug(A, driver="ivshmem-net")
    with pytest.raises(Unusable, match="bound to ivshmem-net"):
        machine.start(only=A)


def test_end_gives_all_windows_back(machine: Machine) -> None:
    machine.plug(A)
    for address, number in ((B, W), (C, W + 1)):
        machine.plug(address, number)
    machine.start()
    windows = machine.finder()
    windows.want({W, W + 1})
    machine.look()
    machine.unplug(C)
    machine.look()
    machine.close()
    assert not machine.enabled(B)
    assert machine.events.closed


# While the binder works.


def test_window_that_is_wanted_is_bound_in_the_attempt_that_reads_its_position(
    machine: Machine,
) -> None:
    machine.plug(A)
    machine.start()
    windows = machine.finder()
    windows.want({W})
    machine.plug(B, W)
    machine.look()
    assert windows.find(W) is not None
    assert machine.attempts == [A, B]
    windows.want(set())


def test_position_of_a_window_is_read_once(machine: Machine) -> None:
    machine.plug(A)
    machine.plug(B, W)
    machine.start()
    for _ in range(3):
        machine.look(after=RETRY)
    assert machine.attempts == [A, B]


def test_look_returns_while_the_binder_works(machine: Machine) -> None:
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


def test_function_that_is_unplugged_while_it_is_bound_is_closed(
    machine: Machine, caplog: pytest.LogCaptureFixture
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


def test_function_that_is_replaced_while_it_is_bound_is_given_back(
    machine: Machine,
) -> None:
    """What the thread binds then is the function that came instead."""
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
    # The first attempt holds its claim until it is given back.
    machine.look(after=RETRY)
    assert machine.served == [A]


def test_window_that_is_wanted_no_more_once_it_is_bound_is_given_back(
    machine: Machine,
) -> None:
    machine.plug(A)
    machine.start()
    windows = machine.finder()
    windows.want({W})
    gate = machine.slow_down(B)
    machine.plug(B, W)
    machine.look_once()
    assert gate.reached.wait(5)
    windows.want(set())
    gate.open()
    machine.look()
    assert windows.find(W) is None
    assert not machine.enabled(B)
    windows.want({W})
    machine.look()
    assert windows.find(W) is not None
    windows.want(set())


def test_end_gives_back_what_is_being_bound(machine: Machine) -> None:
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


def test_device_that_cannot_be_restored_fails_no_other(
    machine: Machine, caplog: pytest.LogCaptureFixture
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


def test_device_that_cannot_be_restored_at_the_end_is_an_error(
    machine: Machine,
) -> None:
    machine.system.plug(A, driver="vfio-pci")
    machine.plug(B)
    machine.start()
    machine.system.deaf = {"vfio-pci"}
    with pytest.raises(Unusable, match="vfio-pci does not take"):
        machine.close()
    assert not machine.enabled(B)
