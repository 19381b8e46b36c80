# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of PCI devices that come and go, through libudev."""

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
    """Events were lost: what they would have said must be looked up."""


class Events(Protocol):
    """Where uevents come from."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when there are any."""

    def read(self) -> list[Uevent]:
        """Return those that have come.

        Raises:
            Overrun: some were lost, and those that were not are dropped as well.
        """

    def addresses(self) -> list[str]:
        """Return the PCI devices that are there now."""

    def close(self) -> None:
        """Listen no more."""


class Uevents:
    """The kernel's own uevents: a slave VM may have no udevd that passes them on.

    So an event may come before the device is complete: its BARs may have no
    addresses yet, or its files not be there.

    Raises:
        Unusable: there is no libudev, or it does not work.
    """

    def __init__(self) -> None:
        try:
            import pyudev  # a tenth of a second in TCG: only who needs it pays

            self._context = pyudev.Context()
            self._monitor = pyudev.Monitor.from_netlink(self._context, source="kernel")
            self._monitor.filter_by("pci")
            self._monitor.start()
        except (ImportError, OSError) as error:
            raise Unusable(
                f"can't hear of devices that come and go: {error}; install libudev "
                "and pyudev (Debian: libudev1, python3-pyudev)"
            ) from None

    def fileno(self) -> int:
        """Return a descriptor that is readable when there are events."""
        return int(self._monitor.fileno())

    def read(self) -> list[Uevent]:
        """Return the events that have come.

        Raises:
            Overrun: some were lost, and those that were not are dropped as well.
        """
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
        """Whether the socket has an error (ENOBUFS); it is taken.

        pyudev's poll() takes it for its own failure, and leaves it there.
        """
        with socket.socket(fileno=os.dup(self.fileno())) as ours:
            return bool(ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def addresses(self) -> list[str]:
        """Return the PCI devices that are there now."""
        found = self._context.list_devices(subsystem="pci")
        return [device.sys_name for device in found]

    def close(self) -> None:
        """Listen no more."""
        with suppress(AttributeError):
            del self._monitor  # its socket goes with it
