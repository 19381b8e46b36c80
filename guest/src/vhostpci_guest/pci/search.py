# SPDX-License-Identifier: Apache-2.0
"""Which PCI devices are ivshmem's, and where they are."""

import re
from collections.abc import Iterable
from contextlib import suppress

from ..errors import Unusable
from .kernel import System
from .sysfs_device import PciDevice

VENDOR, DEVICE = "0x1af4", "0x1110"
# The domain may have more than four digits: Linux numbers the domains behind an Intel
# VMD controller from 0x10000 on.
_ADDRESS = re.compile(r"([0-9a-f]{4,}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def find(
    system: System | None = None, addresses: Iterable[str] | None = None
) -> list[PciDevice]:
    """Return this machine's ivshmem devices, in the order of their addresses.

    Args:
        system: where the kernel's files are.
        addresses: the PCI devices to look at; None: all that udev knows.
    """
    if addresses is None:
        addresses = _udev_addresses()
    system = system or System()
    devices = [PciDevice(address, system) for address in sorted(addresses)]
    return [device for device in devices if is_ivshmem(device)]


def at(address: str, system: System | None = None) -> PciDevice:
    """Return the device at a PCI address; the domain may be left out.

    Raises:
        Unusable: there is no device, or it is not an ivshmem device.
    """
    full = normal_address(address)
    device = PciDevice(full, system or System())
    if not device.path.exists():
        raise Unusable(
            f"no PCI device {full}; vhostpci-guest devices lists them", code="G077"
        )
    if not is_ivshmem(device):
        raise Unusable(
            f"{full} is no ivshmem device ({VENDOR[2:]}:{DEVICE[2:]}); "
            "vhostpci-guest devices lists those that are",
            code="G078",
        )
    return device


def normal_address(address: str) -> str:
    """Return a PCI address as sysfs spells it.

    Raises:
        Unusable: the text is not a PCI address.
    """
    address = address.lower()
    if not _ADDRESS.fullmatch(address):
        raise Unusable(f"{address!r} is no PCI address, as 0000:00:05.0", code="G079")
    return address if address.count(":") == 2 else f"0000:{address}"


def is_ivshmem(device: PciDevice) -> bool:
    """Whether a device is plugged, and has the PCI IDs of ivshmem."""
    with suppress(OSError):  # it may be unplugged between the listing and this
        vendor = (device.path / "vendor").read_text().strip()
        kind = (device.path / "device").read_text().strip()
        return (vendor, kind) == (VENDOR, DEVICE)
    return False


def _udev_addresses() -> list[str]:
    # Imported here: with --device nothing is searched, and it takes 0.1 s under TCG.
    import pyudev

    found = pyudev.Context().list_devices(subsystem="pci")
    return [device.sys_name for device in found.match_attribute("vendor", VENDOR)]
