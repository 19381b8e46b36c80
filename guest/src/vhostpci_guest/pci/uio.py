# SPDX-License-Identifier: Apache-2.0
"""The device through uio_pci_generic: claimed by a driver, but without interrupts.

ivshmem-doorbell has MSI-X only, and uio_pci_generic knows INTx only, so nothing is
to be read from its node.  It is open all the same: so others see that it is in use.
"""

from contextlib import ExitStack

from ..errors import Unusable
from . import sysfs
from .ivshmem import PciBound
from .sysfs_device import PciDevice

NAME = "uio"
DRIVER = "uio_pci_generic"


def why_not(pci: PciDevice) -> str | None:
    """Return what keeps this way from working, as far as one can see beforehand."""
    return pci.system.load(DRIVER, dry=True) or sysfs.why_not(pci)


def bind(pci: PciDevice) -> PciBound:
    """Bind a device that is claimed.

    Raises:
        Unusable: the kernel lacks what it takes.
        OSError: sysfs refuses.
    """
    if why := pci.system.load(DRIVER):
        raise Unusable(why)
    with ExitStack() as stack:
        stack.enter_context(pci.bound(DRIVER))
        stack.enter_context(pci.uio_node())
        return sysfs.mapped(pci, NAME, stack)
