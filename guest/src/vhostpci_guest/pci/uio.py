# SPDX-License-Identifier: Apache-2.0
"""Binding by uio_pci_generic: a driver holds the device, but without interrupts.

ivshmem-doorbell has MSI-X only and uio_pci_generic supports INTx only, so its node
never has anything to read.  The agent keeps it open so that others see that the device
is used.
"""

from contextlib import ExitStack

from ..errors import Unusable
from . import sysfs
from .binding_names import UIO
from .ivshmem import PciBound
from .sysfs_device import PciDevice

DRIVER = "uio_pci_generic"


def why_not(pci: PciDevice) -> str | None:
    """Return why this binding cannot work, or None if nothing speaks against it."""
    return pci.system.load(DRIVER, dry=True) or sysfs.why_not(pci)


def bind(pci: PciDevice) -> PciBound:
    """Bind a device that is claimed.

    Raises:
        Unusable: the module cannot be loaded, or the BARs cannot be mapped.
        OSError: sysfs refuses.
    """
    if why := pci.system.load(DRIVER):
        raise Unusable(why, code="G089")
    with ExitStack() as stack:
        # The driver's probe has switched the device's memory on, so `enabled` is not
        # needed; sysfs would refuse it while a driver is bound.
        stack.enter_context(pci.bound(DRIVER))
        stack.enter_context(pci.uio_node())
        return sysfs.mapped(pci, UIO, stack)
