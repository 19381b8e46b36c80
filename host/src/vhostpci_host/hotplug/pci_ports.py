# SPDX-License-Identifier: Apache-2.0
"""Where in a VM's PCI tree a window fits, read from QEMU's answer to `query-pci`.

A hot-plugged device gets its addresses out of the port that it is plugged into, and
the port's share was fixed when the VM's firmware ran: `pref64-reserve=` of the port.
So a window goes where the smallest share is that is large enough, and the small
window 0 leaves the large ports to the others.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PORTS = frozenset({"pcie-root-port", "ioh3420", "xio3130-downstream"})
"""QEMU's devices that have one slot, and are told when something is plugged in."""

_PCI_TO_PCI = 0x0604
_WINDOW_BAR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A port that may be plugged into, as firmware has set it up."""

    name: str
    """Its ID, and that of the bus behind it."""
    ready: bool
    """Firmware, or the guest, has given it its share of addresses."""
    base: int
    limit: int
    """First and last address of its prefetchable share."""
    taken: bool

    @property
    def share(self) -> int:
        """Bytes of its prefetchable share."""
        return max(self.limit - self.base + 1, 0)

    def fits(self, size: int) -> bool:
        """Whether a BAR of `size` has a place, at a multiple of its size."""
        return -(-self.base // size) * size + size - 1 <= self.limit


def ports(answer: Any, types: dict[str, str]) -> list[Port]:
    """Return the ports in `query-pci`'s answer; `types` are QEMU's own, by ID.

    Raises:
        LookupError, TypeError: QEMU does not answer like that.
    """
    return [
        _port(device)
        for device in _devices(answer)
        if device["class_info"]["class"] == _PCI_TO_PCI
        and types.get(device["qdev_id"]) in PORTS
    ]


def _port(device: dict[str, Any]) -> Port:
    bridge = device["pci_bridge"]
    prefetchable = bridge["bus"]["prefetchable_range"]
    return Port(
        name=device["qdev_id"],
        ready=bridge["bus"]["secondary"] != 0,
        base=prefetchable["base"],
        limit=prefetchable["limit"],
        taken=bool(bridge.get("devices")),
    )


def best(found: list[Port], size: int) -> list[Port]:
    """Return the free ports that a BAR of `size` fits into, the smallest first."""
    free = [port for port in found if port.ready and not port.taken]
    return sorted((p for p in free if p.fits(size)), key=lambda port: port.share)


def unassigned(answer: Any) -> set[str]:
    """Return the IDs of the devices whose BAR 2 has no address that is in use.

    Raises:
        LookupError, TypeError: QEMU does not answer like that.
    """
    return {
        device["qdev_id"]
        for device in _devices(answer)
        for region in device["regions"]
        if region["bar"] == _WINDOW_BAR and region["address"] < 0
    }


def unset(ports: list[Port]) -> bool:
    """Whether firmware has yet to set up all of the ports."""
    return bool(ports) and not any(port.ready for port in ports)


def free_text(ports: list[Port]) -> str:
    """Say how large the ports are that could be plugged into."""
    free = (port for port in ports if port.ready and not port.taken)
    return ", ".join(size_text(port.share) for port in free) or "none"


def size_text(size: int) -> str:
    """Write bytes as QEMU reads them."""
    for unit, letter in ((2**40, "T"), (2**30, "G"), (2**20, "M"), (2**10, "K")):
        if size and size % unit == 0:
            return f"{size // unit}{letter}"
    return str(size)


def _devices(answer: Any) -> Iterator[dict[str, Any]]:
    """Walk the tree: buses, their devices, and what is behind bridges."""
    for bus in answer:
        yield from _behind(bus["devices"])


def _behind(devices: Any) -> Iterator[dict[str, Any]]:
    for device in devices:
        yield device
        yield from _behind(device.get("pci_bridge", {}).get("devices", []))
