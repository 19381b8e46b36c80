# SPDX-License-Identifier: Apache-2.0
"""Find the root port that a window fits into, from QEMU's answer to `query-pci`.

A hot-plugged device gets its addresses out of the range of its root port, and that
range was fixed when the VM's firmware ran (`pref64-reserve=` of the root port).  So a
window goes to the root port with the smallest range that is large enough: the small
window 0 then leaves the large root ports to the other windows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TYPES = frozenset({"pcie-root-port", "ioh3420", "xio3130-downstream"})
"""QEMU's root ports, and the like: they have one slot, which supports hot-plug."""

NARROW_CPU = "x86_64-cpu.phys-bits=39"
"""QEMU's property, for `-global`, with which firmware puts windows at 4 GiB and up."""

# SeaBIOS from 1.16.3 on (Debian 13 has it) puts windows at the top of what an AMD
# processor with 40 address bits or more can address.  40 bits are QEMU's default for
# each model but `host`, and there the top is this range: QEMU tells the guest that it
# is reserved, as real AMD machines use it for HyperTransport.  Linux then gives no
# address to a device that is plugged: "BAR 2: can't assign; no space".  With 39 bits,
# which all accelerators take, QEMU reserves nothing, and SeaBIOS begins at 4 GiB.
_AMD_RESERVED = range(0xFD_0000_0000, 1 << 40)

# The class code of a PCI-to-PCI bridge, which a root port is, too.
_PCI_TO_PCI = 0x0604
_WINDOW_BAR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RootPort:
    """A root port, as firmware has set it up."""

    name: str
    """Its ID, and that of the bus behind it."""
    ready: bool
    """Firmware, or the guest, has given it its range of addresses."""
    base: int
    limit: int
    """First and last address of its prefetchable range."""
    taken: bool

    @property
    def share(self) -> int:
        """Bytes of its prefetchable range."""
        # A root port without a range has a limit below its base.
        return max(self.limit - self.base + 1, 0)

    def fits(self, size: int) -> bool:
        """Whether a BAR of `size` has a place, at a multiple of its size."""
        # Round the base up to a multiple of the size: the range itself may begin at
        # any megabyte.
        return -(-self.base // size) * size + size - 1 <= self.limit


def find(answer: Any, types: dict[str, str]) -> list[RootPort]:
    """Return the root ports in `query-pci`'s answer; `types` are QEMU's own, by ID.

    Raises:
        LookupError, TypeError: QEMU does not answer like that.
    """
    return [
        _port(device)
        for device, _ in _devices(answer)
        # The class alone is not enough: a bridge to conventional PCI has it as well.
        if device["class_info"]["class"] == _PCI_TO_PCI
        and types.get(device["qdev_id"]) in TYPES
    ]


def _port(device: dict[str, Any]) -> RootPort:
    bridge = device["pci_bridge"]
    prefetchable = bridge["bus"]["prefetchable_range"]
    return RootPort(
        name=device["qdev_id"],
        # Bus number 0 is the host bridge's: a root port that has it is not set up.
        ready=bridge["bus"]["secondary"] != 0,
        base=prefetchable["base"],
        limit=prefetchable["limit"],
        taken=bool(bridge.get("devices")),
    )


def best(found: list[RootPort], size: int) -> list[RootPort]:
    """Return the free root ports that a BAR of `size` fits into, the smallest first."""
    # QEMU refuses neither a root port that has a device already (the guest never sees
    # the second) nor one that firmware has not set up (the guest gives the BAR no
    # address).
    free = [port for port in found if port.ready and not port.taken]
    return sorted((p for p in free if p.fits(size)), key=lambda port: port.share)


def unassigned(answer: Any) -> dict[str, str]:
    """Return the IDs of the devices whose BAR 2 has no address that is in use.

    The value says why, where that can be seen, and what to do; else it is empty.

    Raises:
        LookupError, TypeError: QEMU does not answer like that.
    """
    return {
        device["qdev_id"]: "" if port is None else _why_unassigned(port)
        for device, port in _devices(answer)
        for region in device["regions"]
        # QEMU prints the 64-bit "unmapped" address (all ones) as -1.
        if region["bar"] == _WINDOW_BAR and region["address"] < 0
    }


def _why_unassigned(port: dict[str, Any]) -> str:
    base: int = port["pci_bridge"]["bus"]["prefetchable_range"]["base"]
    if base not in _AMD_RESERVED:
        return ""
    return (
        f"the slave's firmware has put the root port {port['qdev_id']} at {base:x}, "
        "among addresses that QEMU reserves for an AMD processor with 40 address bits: "
        f"start the slave's QEMU with -global {NARROW_CPU}, as qemu-args and xml print "
        "it; with -cpu host add host-phys-bits-limit=39 to that"
    )


def unset(found: list[RootPort]) -> bool:
    """Whether firmware has not set up any of the root ports yet."""
    # One root port with a bus number shows that firmware has run.
    return bool(found) and not any(port.ready for port in found)


def free_text(found: list[RootPort]) -> str:
    """Return the sizes of the free root ports' ranges, for an error."""
    free = (port for port in found if port.ready and not port.taken)
    return ", ".join(size_text(port.share) for port in free) or "none"


def size_text(size: int) -> str:
    """Return a number of bytes as QEMU's options write it, such as 512M."""
    # The largest unit that divides it: users copy the text into a command line, so it
    # must not be rounded.
    for unit, letter in ((2**40, "T"), (2**30, "G"), (2**20, "M"), (2**10, "K")):
        if size and size % unit == 0:
            return f"{size // unit}{letter}"
    return str(size)


_Found = tuple[dict[str, Any], dict[str, Any] | None]
"""A device, and the bridge or root port that it is behind; None on a root bus."""


def _devices(answer: Any) -> Iterator[_Found]:
    """Yield all devices of the tree, also those behind root ports."""
    for bus in answer:
        yield from _behind(bus["devices"], None)


def _behind(devices: Any, port: dict[str, Any] | None) -> Iterator[_Found]:
    for device in devices:
        yield device, port
        yield from _behind(device.get("pci_bridge", {}).get("devices", []), device)
