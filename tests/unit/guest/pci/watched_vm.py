# SPDX-License-Identifier: Apache-2.0
"""A fake slave VM whose ivshmem functions a PciWatch follows."""

import select
import threading
from collections.abc import Callable, Set
from pathlib import Path

from tests.fakes.clock import Clock
from tests.fakes.sysfs import FakeSystem
from tests.fakes.uevents import FakeEvents
from vhostpci_guest.interfaces import Device, Windows
from vhostpci_guest.pci import bindings
from vhostpci_guest.pci.binder import Binder
from vhostpci_guest.pci.ivshmem import PciBound
from vhostpci_guest.pci.sysfs_device import PciDevice
from vhostpci_guest.pci.watch import PciWatch

A, B, C, D = (f"0000:00:0{n}.0" for n in range(4, 8))
"""PCI addresses of four functions."""
W = 4711
"""The number of a window: its IVPosition."""


class Gate:
    """Blocks the binder's thread until the test opens the gate."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._opened = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self._opened.wait(10), "the test never opened the gate"

    def open(self) -> None:
        self._opened.set()


class WatchedVm:
    """A fake slave VM and the watch over its ivshmem functions.

    By default the functions are bound through sysfs, without a kernel driver.
    """

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
        """Called on the binder's thread before each bind."""

    def bind_if(
        self, pci: PciDevice, keep: Set[int] | None
    ) -> tuple[int, PciBound | None]:
        """Bind a function as the agent does."""
        self.attempts.append(pci.address)
        self.before_bind(pci)
        return bindings.bind_if(pci, keep, self.bind)

    def slow_down(self, address: str) -> Gate:
        """Make the binder wait at one function; return the gate that it waits at."""
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
        """Let `after` seconds pass; look until the binder has nothing more to do."""
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
        """Look once; give back the devices that are gone and take the new ones."""
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
        """Unbind a device from its driver, as an administrator does through sysfs."""
        path = self.system.sys / "bus/pci/devices" / address
        self.system.write(path / "driver/unbind", address)
        self.events.say("unbind", address)

    def probe(self, address: str, driver: str) -> None:
        """Load a driver and bind a device to it, as an administrator does."""
        path = self.system.sys / "bus/pci/devices" / address
        self.system.load_now(driver)
        self.system.write(path / "driver_override", driver)
        self.system.write(self.system.sys / "bus/pci/drivers_probe", address)
        self.system.write(path / "driver_override", "\n")
        self.events.say("bind", address)

    def enabled(self, address: str) -> bool:
        """Return whether a device is enabled, that is, bound by an agent."""
        path = self.system.sys / "bus/pci/devices" / address / "enable"
        return path.read_text() == "1\n"

    def finder(self) -> Windows:
        """Return the windows as the link of the first device sees them."""
        assert self.watch is not None
        return self.watch.windows(self.taken[0])

    def close(self) -> None:
        """Close the watch as the agent does, unless that has happened."""
        if self.events.closed:
            return
        if self.watch is not None:
            for device in self.taken:
                self.watch.give_back(device)
            self.watch.close()
        else:
            self.binder.close()
            self.events.close()
