# SPDX-License-Identifier: Apache-2.0
"""The bindings: the ways to reach a PCI device, the best first."""

import logging
from collections.abc import Callable, Set
from contextlib import ExitStack
from dataclasses import dataclass

from vhostpci_shared import metadata as md

from ..errors import Unusable
from . import kmod, sysfs, uio, vfio
from .binding_names import AUTO, KMOD, SYSFS, UIO, VFIO, signals
from .ivshmem import PciBound
from .position import read_position
from .sysfs_device import PciDevice

log = logging.getLogger(__name__)

HIGHER = (
    "firmware puts windows from 1 GiB up there; give the master 512 MiB of memory or "
    "more, in attach mode 1 GiB"
)
"""How to get BAR 2 above 4 GiB."""


@dataclass(frozen=True, slots=True)
class Binding:
    """One way to reach a device: whether it can work, how to bind, and what it gives.

    `cached` is whether BAR 2 is mapped write-back, and not uncached.  It is what the
    slave asks for: on Intel's processors KVM caches the window whatever the slave
    asks for, on AMD's the slave decides.
    """

    why_not: Callable[[PciDevice], str | None]
    bind: Callable[[PciDevice], PciBound]
    interrupts: bool
    cached: bool = False

    def caches(self, pci: PciDevice) -> bool:
        """Whether the processor would cache the window of this device."""
        # Below 4 GiB the firmware has made all PCI memory uncached (by an MTRR), and
        # that beats a write-back mapping.
        return self.cached and pci.bar_is_high(2)

    def caching(self, pci: PciDevice) -> str:
        """Return the text for people that says whether the window is cached."""
        if self.cached and not pci.bar_is_high(2):
            return "uncached (BAR 2 below 4 GiB)"
        return "cached" if self.cached else "uncached"


# The best first.  kmod gives interrupts and a cached window, vfio gives interrupts, and
# the other two neither.  uio comes before sysfs because it binds a driver, so other
# programs see that the device is in use.
BINDINGS = {
    KMOD: Binding(kmod.why_not, kmod.bind, interrupts=True, cached=True),
    VFIO: Binding(vfio.why_not, vfio.bind, interrupts=True),
    UIO: Binding(uio.why_not, uio.bind, interrupts=False),
    SYSFS: Binding(sysfs.why_not, sysfs.bind, interrupts=False),
}


def bind(pci: PciDevice, wanted: str = AUTO) -> PciBound:
    """Bind a device the way that is wanted, or the best one that works.

    Raises:
        Unusable: none does; the text has the reason for each.
    """
    with ExitStack() as claim:
        claim.enter_context(pci.claimed())
        return _bind(pci, wanted, claim)


def bind_if(
    pci: PciDevice, keep: Set[int] | None, wanted: str = AUTO
) -> tuple[int, PciBound | None]:
    """Bind a device if its IVPosition is one of `keep`; else leave it as it was.

    Args:
        pci: the device.
        keep: IVPositions; None: whatever it is.
        wanted: the way to bind it.

    Returns:
        its IVPosition, and the device if it is kept.

    Raises:
        Unusable: another has it, or no way to bind it works.
        OSError: sysfs refuses.
    """
    with ExitStack() as claim:
        claim.enter_context(pci.claimed())
        if keep is not None:
            position = _position_unbound(pci)
            if position is not None and position not in keep:
                return position, None
        device = _bind(pci, wanted, claim)
    bound_position = device.window.id
    # The claim is the device's now: `close` releases it after the old driver is bound.
    if keep is None or bound_position in keep:
        return bound_position, device
    device.close()
    return bound_position, None


def _position_unbound(pci: PciDevice) -> int | None:
    """Return the IVPosition if it can be read without binding a driver.

    Many devices that an agent meets are windows that it does not want, or another
    agent's.  To read one word through sysfs takes a few system calls, and the device
    does not notice.  To bind a driver for it may load a module and reset the device,
    and until it is given back the agent that wants the device finds it in use.
    """
    if pci.driver == kmod.DRIVER:
        # This driver has the registers for itself: they are in its node only.
        return read_position(pci)
    if sysfs.why_not(pci) is None:
        return sysfs.read_unbound(pci)
    return None


def _bind(pci: PciDevice, wanted: str, claim: ExitStack) -> PciBound:
    """Bind a device that is claimed; the claim goes to the device."""
    reasons = []
    for name in BINDINGS if wanted == AUTO else (wanted,):
        try:
            device = _bind_by(pci, name)
        except PermissionError as error:
            # Every other way needs root too, so the reasons of the rest say no more.
            raise Unusable(
                f"{pci.address}: no permission to bind it by {name} "
                f"({error.filename}): run as root",
                code="G068",
            ) from None
        except (Unusable, OSError) as why_not:
            reasons.append(f"not {name}: {why_not}")
            continue
        device.adopt(claim.pop_all())
        _tell(pci, BINDINGS[name], name, reasons)
        return device
    raise Unusable(
        f"{pci.address}: no way to bind it works: {'; '.join(reasons)}; make one of "
        "them work (`vhostpci-guest doctor` has commands for it)",
        code="G069",
    )


def _bind_by(pci: PciDevice, name: str) -> PciBound:
    binding = BINDINGS[name]
    if why := binding.why_not(pci):
        raise Unusable(why, code="G070")
    return binding.bind(pci)


def _tell(pci: PciDevice, way: Binding, name: str, reasons: list[str]) -> None:
    """Log how the device is bound, and why not by a better binding."""
    log.info(
        "%s: bound by %s (%s, %s)",
        pci.address,
        name,
        signals(way.interrupts),
        way.caching(pci),
    )
    for reason in reasons:
        log.info("%s: %s", pci.address, reason)
    if way.cached and is_low(pci):
        log.warning(
            "%s: BAR 2 is not above 4 GiB, so it is uncached, which is slow on AMD "
            "processors; %s",
            pci.address,
            HIGHER,
        )


def is_low(pci: PciDevice) -> bool:
    """Whether a device shows memory of the master below 4 GiB."""
    # In attach mode window 0 has the metadata and nothing else, which is not read often
    # enough for its speed to matter.
    return pci.bar_size(2) > md.SIZE and not pci.bar_is_high(2)
