# SPDX-License-Identifier: Apache-2.0
"""One ivshmem device that is plugged into a fake slave VM."""

from tests.fakes.sysfs import FakeSystem
from vhostpci_guest.pci import bindings, search
from vhostpci_guest.pci.sysfs_device import PciDevice

HERE = "0000:00:05.0"
"""The PCI address of the device."""


def device(system: FakeSystem, **options: str | int | None) -> PciDevice:
    """Plug the device in, with the options of `FakeSystem.plug`; return it."""
    system.plug(HERE, **options)  # type: ignore[arg-type]
    return search.at(HERE, system)


def position(here: PciDevice) -> int:
    """Return the IVPosition of a device that no link wants, as the watch reads it."""
    found, bound = bindings.bind_if(here, frozenset())
    assert bound is None
    return found
