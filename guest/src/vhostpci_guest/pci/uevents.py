# SPDX-License-Identifier: Apache-2.0
"""The kernel's uevents of PCI devices, through libudev."""

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from ..errors import Unusable


@dataclass(frozen=True, slots=True)
class Uevent:
    """One thing that happened to a PCI device.

    `action` is ``add``, ``remove``, ``bind``, ``unbind`` or ``change``.
    """

    action: str
    address: str


class Overrun(Exception):
    """The kernel dropped uevents: compare `addresses` with what is known."""


class Events(Protocol):
    """A source of uevents."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when there are uevents."""

    def read(self) -> list[Uevent]:
        """Return the uevents since the last call.

        Raises:
            Overrun: some were lost, and those that were not are dropped as well.
        """

    def addresses(self) -> list[str]:
        """Return the addresses of all PCI devices that are plugged now."""

    def close(self) -> None:
        """Close the socket."""


def preload() -> None:
    """Import pyudev, where it is: later our user may not be able to read it."""
    with suppress(ImportError):
        import pyudev  # noqa: F401


class Uevents:
    """The kernel's own uevents; those of udevd exist only where udevd runs.

    The kernel sends "add" before it has set the device up: its BARs may have no
    addresses yet, or no files in sysfs (`PciDevice.complete`).

    Raises:
        Unusable: there is no libudev, or it does not work.
    """

    def __init__(self) -> None:
        try:
            # Imported here: it takes 0.1 s under TCG, and --socket does not need it.
            import pyudev

            self._context = pyudev.Context()
            self._monitor = pyudev.Monitor.from_netlink(self._context, source="kernel")
            self._monitor.filter_by("pci")
            self._monitor.start()
        except (ImportError, OSError) as error:
            raise Unusable(
                f"cannot receive uevents of PCI devices: {error}; install libudev "
                "and pyudev (Debian: libudev1, python3-pyudev)",
                code="G088",
            ) from None

    def fileno(self) -> int:
        """Return the netlink socket."""
        return int(self._monitor.fileno())

    def read(self) -> list[Uevent]:
        """Return the uevents since the last call.

        Raises:
            Overrun: some were lost, and those that were not are dropped as well.
        """
        # Asked first: pyudev's poll() raises while the socket has an error.
        found, lost = [], self._failed()
        while True:
            try:
                device = self._monitor.poll(0)
            except OSError:
                if not self._failed():
                    raise
                lost = True
                continue
            if device is None:
                break
            found.append(Uevent(device.action or "", device.sys_name))
        if lost:
            raise Overrun
        return found

    def _failed(self) -> bool:
        """Whether the socket has an error (ENOBUFS); reading the error clears it.

        pyudev's poll() raises for the error, and does not clear it.
        """
        with socket.socket(fileno=os.dup(self.fileno())) as ours:
            return bool(ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def addresses(self) -> list[str]:
        """Return the addresses of all PCI devices that are plugged now."""
        found = self._context.list_devices(subsystem="pci")
        return [device.sys_name for device in found]

    def close(self) -> None:
        """Close the socket."""
        with suppress(AttributeError):
            # pyudev has no close(): the monitor's destructor closes the socket.
            del self._monitor
