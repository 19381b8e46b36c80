# SPDX-License-Identifier: Apache-2.0
"""What the helper of the PCI part does for the agent, and what it refuses.

The agent, and with it a master that has taken it over, gets by this helper:

* the BARs, nodes and configuration space (to read) of ivshmem functions;
* the second node of uio_vhostpci, which gives nothing to a process that has no
  function's UIO node open;
* ivshmem functions that no other agent has claimed bound to a driver for user space, or
  to none;
* the modules of these drivers loaded, and that of the kernel's vhost-net;
* which processes have a device's node open, or a file mapped that the agent has open.

Nothing of any other PCI function, no other file, and no other module.  The claim is
shown by its descriptor: it is the function's `config` file, locked.  So an order cannot
meet the function that was plugged at an address next.
"""

import errno
import fcntl
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ..errors import Unusable
from ..privileges.channel import Answer, BadOrder, Handler, Order
from .kernel import System
from .search import is_ivshmem
from .sysfs_device import NO_DRIVER, SHAREABLE, UIO_VHOSTPCI, PciDevice

WRITE = "write"
OPEN = "open"
OPEN_ATTRIBUTE = "open attribute"
MODPROBE = "modprobe"
SIGNER = "signer"
USERS = "users"
MAPPED_BY = "mapped by"
ALL = "all"
"""In the place of the processes: all of them."""

VHOST_NET = "vhost_net"
TUN = "tun"
"""The module of the data plane vhost-net."""

_ADDRESS = r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"
_FUNCTION = re.compile(rf"bus/pci/devices/({_ADDRESS})/([a-z0-9_/]+)")
_NODE = re.compile(
    r"uio[0-9]{1,9}|uio_vhostpci|vfio/vfio|vfio/[0-9]{1,9}|vfio/devices/vfio[0-9]{1,9}"
)
_OF_NO_FUNCTION = frozenset({"vfio/vfio", UIO_VHOSTPCI})
"""Nodes of all functions: they give nothing without the node of a function."""
_BRIDGE = "0x06"
"""What the class of a PCI bridge begins with: a group may have the root port in it."""
_NUMBER = re.compile(r"[0-9]{1,10}")
_MOST_PROCESSES = 64
_PROBE = "bus/pci/drivers_probe"
_READ, _WRITTEN = frozenset({"config"}), frozenset({"resource0", "resource2"})


class PciOrders:
    """Carries the orders out.

    Args:
        system: this machine's kernel.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._overrides: dict[str, set[str]] = {}
        """Values of `driver_override` that a function had, which may be put back."""

    def handlers(self) -> Mapping[str, Handler]:
        """Return what does each order."""
        return {
            WRITE: self._write,
            OPEN: self._open,
            OPEN_ATTRIBUTE: self._open_attribute,
            MODPROBE: self._modprobe,
            SIGNER: lambda order: Answer(self._system.signer(_module(order))),
            USERS: self._users,
            MAPPED_BY: self._mapped_by,
        }

    # Files of sysfs.

    def _below_sys(self, order: Order) -> str:
        prefix = f"{self._system.sys}/"
        path = order.text(0)
        if not path.startswith(prefix):
            raise BadOrder(f"{path} is not in sysfs")
        return path.removeprefix(prefix)

    def _function(self, path: str) -> tuple[PciDevice, str]:
        """Return the ivshmem function that a path is of, and the attribute's name."""
        match = _FUNCTION.fullmatch(path)
        if match is None:
            raise BadOrder(f"{path} is no attribute of a PCI function")
        return self._ivshmem(match[1]), match[2]

    def _ivshmem(self, address: str) -> PciDevice:
        if not re.fullmatch(_ADDRESS, address):
            raise BadOrder(f"{address!r} is no PCI address")
        device = PciDevice(address, self._system)
        if not device.path.exists():
            raise FileNotFoundError(
                errno.ENOENT, os.strerror(errno.ENOENT), str(device.path)
            )
        if not is_ivshmem(device):
            raise BadOrder(f"{address} is no ivshmem function")
        return device

    def _open_attribute(self, order: Order) -> Answer:
        device, name = self._function(self._below_sys(order))
        if name not in _READ | _WRITTEN:
            raise BadOrder(f"{name} is not for the agent to open")
        write = name in _WRITTEN
        return Answer(fd=self._system.open_attribute(device.path / name, write=write))

    def _write(self, order: Order) -> Answer:
        path, text = self._below_sys(order), order.text(1)
        if path == _PROBE:
            device, name = self._ivshmem(text), path
        else:
            device, name = self._function(path)
        self._check_claim(device, order.fd())
        if name == "driver/unbind":
            self._check_unbind(device, text)
        elif name == "driver_override":
            self._check_override(device, text)
        elif name == "enable":
            if text not in ("0", "1"):
                raise BadOrder(f"{text!r} switches nothing")
        elif name != _PROBE:
            raise BadOrder(f"{name} is not for the agent to write")
        self._system.write(self._system.sys / path, text)
        return Answer()

    def _check_claim(self, device: PciDevice, fd: int) -> None:
        """Check that a descriptor is the claim on this very function."""
        if not os.path.samestat(os.fstat(fd), (device.path / "config").stat()):
            raise BadOrder(f"the claim is not on {device.address}")
        try:
            # A lock belongs to the open file: who has it may lock it again.
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadOrder(f"another agent has claimed {device.address}") from None

    def _check_unbind(self, device: PciDevice, text: str) -> None:
        if text != device.address:
            raise BadOrder(f"{text!r} is not {device.address}")
        if (driver := device.driver) not in (None, *SHAREABLE):
            raise BadOrder(f"{driver} is no driver that the agent unbinds")

    def _check_override(self, device: PciDevice, text: str) -> None:
        # What it has now may be the user's, and is put back at the end.
        now = (device.path / "driver_override").read_text().strip()
        known = self._overrides.setdefault(device.address, set())
        if now != "(null)":
            known.add(now)
        if text.strip() not in {"", NO_DRIVER, *SHAREABLE, *known}:
            raise BadOrder(f"{text!r} is no driver for {device.address}")

    # Device nodes.

    def _open(self, order: Order) -> Answer:
        path = order.text(0)
        name = path.removeprefix(f"{self._system.dev}/")
        if not self._is_node(path):
            raise BadOrder(f"{path} is no node of an ivshmem function")
        if name in _OF_NO_FUNCTION:
            pass
        elif name.startswith("uio"):
            self._check_uio(name)
        else:
            self._check_group(name.removeprefix("vfio/"))
        return Answer(fd=self._system.open(Path(path)))

    def _is_node(self, path: str) -> bool:
        prefix = f"{self._system.dev}/"
        return path.startswith(prefix) and bool(
            _NODE.fullmatch(path.removeprefix(prefix))
        )

    def _check_uio(self, name: str) -> None:
        functions = self._system.sys / "bus/pci/devices"
        for path in functions.glob(f"*/uio/{name}"):
            if is_ivshmem(PciDevice(path.parent.parent.name, self._system)):
                return
        raise BadOrder(f"{name} is not of an ivshmem function")

    def _check_group(self, group: str) -> None:
        """Check that a group has only what the agent may have, and bridges."""
        members = self._system.sys / "kernel/iommu_groups" / group / "devices"
        names = [path.name for path in members.iterdir()] if members.exists() else []
        for name in names:
            device = PciDevice(name, self._system)
            kind = ""
            with suppress(OSError):
                kind = (device.path / "class").read_text()
            if not is_ivshmem(device) and not kind.startswith(_BRIDGE):
                raise Unusable(
                    f"IOMMU group {group} has {name} in it, which is no ivshmem "
                    "function: put the ivshmem function alone on a PCIe root port or "
                    "bus",
                    code="G076",
                )
        if not names:
            raise BadOrder(f"there is no IOMMU group {group}")

    # The rest.

    def _modprobe(self, order: Order) -> Answer:
        dry = bool(order.number(1))
        return Answer(self._system.modprobe(_module(order), dry=dry))

    def _users(self, order: Order) -> Answer:
        paths = order.texts(0)
        if not all(map(self._is_node, paths)):
            raise BadOrder("one of them is no node of an ivshmem function")
        return Answer(self._system.users(map(Path, paths)))

    def _mapped_by(self, order: Order) -> Answer:
        numbers = order.texts(0)
        if numbers == [ALL]:
            return Answer(self._system.mapped_by(order.fd(), None))
        if len(numbers) > _MOST_PROCESSES or not all(map(_NUMBER.fullmatch, numbers)):
            raise BadOrder("these are no processes")
        return Answer(self._system.mapped_by(order.fd(), map(int, numbers)))


def _module(order: Order) -> str:
    module = order.text(0)
    if module not in (*SHAREABLE, VHOST_NET, TUN):
        raise BadOrder(f"{module} is no module that the agent uses")
    return module
