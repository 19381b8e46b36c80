# SPDX-License-Identifier: Apache-2.0
"""Fake uevents: the kernel's messages about plugged and unplugged PCI devices."""

import os
import struct
from pathlib import Path

from tests.fakes.sysfs import FakeSystem
from vhostpci_guest.eventfds import drain, new_eventfd, signal
from vhostpci_guest.pci.uevents import Overrun, Uevent


class FakeEvents:
    """The `Events` of a fake system, which plugs and unplugs devices as well."""

    def __init__(self, system: FakeSystem) -> None:
        self.system = system
        self._fd = new_eventfd()
        self._events: list[Uevent] = []
        self._overrun = False
        self.closed = False

    def plug(self, address: str, position: int = 0, *, complete: bool = True) -> Path:
        """Plug a device in and report it.

        With complete=False its memory cannot be read until `complete` is called."""
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
        """Make the memory of a device readable; the kernel sends no uevent for that."""
        path = self.system.sys / "bus/pci/devices" / address
        (path / "resource0.later").rename(path / "resource0")

    def unplug(self, address: str) -> None:
        """Pull a device out and report it."""
        self.system.unplug(address)
        self.say("remove", address)

    def say(self, action: str, address: str) -> None:
        """Report an action of a device."""
        self._events.append(Uevent(action, address))
        signal(self._fd)

    def overrun(self) -> None:
        """Lose all unread uevents, as a full netlink socket does."""
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
