# SPDX-License-Identifier: Apache-2.0
"""A machine whose PCI devices come and go, and the kernel's word of it."""

import os
import struct
from pathlib import Path

from tests.fakes.sysfs import FakeSystem
from vhostpci_guest.eventfds import drain, new_eventfd, signal
from vhostpci_guest.pci.uevents import Overrun, Uevent


class FakeEvents:
    """An `Events` of a fake system; devices are plugged and unplugged here."""

    def __init__(self, system: FakeSystem) -> None:
        self.system = system
        self._fd = new_eventfd()
        self._events: list[Uevent] = []
        self._overrun = False
        self.closed = False

    def plug(self, address: str, position: int = 0, *, complete: bool = True) -> Path:
        """Plug a device in; the kernel may not be done with it yet."""
        path = self.system.plug(address)
        registers = struct.pack("<8xI244x", position)
        if complete:
            (path / "resource0").write_bytes(registers)
        else:
            (path / "resource0").rename(path / "resource0.later")
            (path / "resource0.later").write_bytes(registers)
        self.say("add", address)
        return path

    def complete(self, address: str) -> None:
        """Be done with a device; of this there is no word."""
        path = self.system.sys / "bus/pci/devices" / address
        (path / "resource0.later").rename(path / "resource0")

    def unplug(self, address: str) -> None:
        """Pull a device out."""
        self.system.unplug(address)
        self.say("remove", address)

    def say(self, action: str, address: str) -> None:
        """Say anything."""
        self._events.append(Uevent(action, address))
        signal(self._fd)

    def overrun(self) -> None:
        """Forget what was to be said."""
        self._events.clear()
        self._overrun = True

    def fileno(self) -> int:
        return self._fd

    def read(self) -> list[Uevent]:
        drain(self._fd)
        events, self._events = self._events, []
        if self._overrun:
            self._overrun = False
            raise Overrun
        return events

    def addresses(self) -> list[str]:
        return [path.name for path in self.system.devices()]

    def close(self) -> None:
        self.closed = True
        os.close(self._fd)
