# SPDX-License-Identifier: Apache-2.0
"""The ways to a PCI device, the best first."""

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

from . import sysfs, uio, vfio
from .device import PciBound, Unusable
from .pci import PciDevice

log = logging.getLogger(__name__)

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Binding:
    """One way: whether it can work, how to take it, and what it gives."""

    why_not: Callable[[PciDevice], str | None]
    bind: Callable[[PciDevice], PciBound]
    interrupts: bool


BINDINGS = {
    vfio.NAME: Binding(vfio.why_not, vfio.bind, interrupts=True),
    uio.NAME: Binding(uio.why_not, uio.bind, interrupts=False),
    sysfs.NAME: Binding(sysfs.why_not, sysfs.bind, interrupts=False),
}


def bind(pci: PciDevice, wanted: str = AUTO) -> PciBound:
    """Take a device the way that is wanted, or the best one that works.

    Raises:
        Unusable: none does; the text has the reason for each.
    """
    with pci.claimed():
        pass  # said once, not for each way
    reasons = []
    for name in BINDINGS if wanted == AUTO else (wanted,):
        try:
            device = _bind(pci, name)
        except PermissionError as error:
            raise Unusable(
                f"{pci.address}: no permission to bind it by {name} "
                f"({error.filename}): run as root"
            ) from None
        except (Unusable, OSError) as why_not:
            reasons.append(f"not {name}: {why_not}")
            continue
        how = "interrupts" if BINDINGS[name].interrupts else "polling"
        log.info("%s: bound by %s (%s)", pci.address, name, how)
        for reason in reasons:
            log.info("%s: %s", pci.address, reason)
        return device
    raise Unusable(f"{pci.address} can't be bound: {'; '.join(reasons)}")


def position(pci: PciDevice, wanted: str = AUTO) -> int:
    """Return a device's IVPosition; the device is as before afterwards.

    Raises:
        Unusable: somebody has it, or no way to it works.
        OSError: sysfs refuses.
    """
    if sysfs.why_not(pci) is None:
        return sysfs.position(pci)
    with closing(bind(pci, wanted)) as device:
        return device.window.id


def _bind(pci: PciDevice, name: str) -> PciBound:
    binding = BINDINGS[name]
    if why := binding.why_not(pci):
        raise Unusable(why)
    return binding.bind(pci)
