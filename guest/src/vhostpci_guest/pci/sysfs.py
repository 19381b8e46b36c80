# SPDX-License-Identifier: Apache-2.0
"""Binding without a driver: the BARs are mapped from sysfs; no interrupts."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

from ..dataplane.mapping import Mapping
from ..errors import Unusable
from ..interfaces import WindowFile, nothing
from . import holders
from .binding_names import SYSFS
from .ivshmem import MappedWindow, PciBound, Registers
from .position import mapped_resource, opened_resource, read_position
from .sysfs_device import PciDevice

log = logging.getLogger(__name__)


def why_not(pci: PciDevice) -> str | None:
    """Return why this binding cannot work, or None if nothing speaks against it."""
    # Asked beforehand: the kernel refuses the mmap() only, when the driver that the
    # device had is already unbound.
    if pci.system.locked_down:
        return (
            "kernel lockdown forbids to map BARs from sysfs; use kmod or vfio, "
            "or switch Secure Boot off"
        )
    return None


def bind(pci: PciDevice) -> PciBound:
    """Bind a device that is claimed.

    Raises:
        Unusable: the kernel does not map its BARs.
        OSError: sysfs refuses.
    """
    with ExitStack() as stack:
        # In this order: sysfs refuses `enable` (EBUSY) while a driver is bound.
        stack.enter_context(pci.bound(None))
        stack.enter_context(pci.enabled())
        return mapped(pci, SYSFS, stack)


def read_unbound(pci: PciDevice) -> int:
    """Return the IVPosition of a device that is claimed, and leave it as it was.

    Raises:
        Unusable: the driver that it had does not take it back.
        OSError: the kernel does not map the registers.
    """
    with pci.bound(None), pci.enabled():
        return read_position(pci)


@contextmanager
def mapped_window(
    pci: PciDevice,
    claim: Callable[[], None] | None = None,
    give: Callable[[], None] = nothing,
) -> Iterator[MappedWindow]:
    """Map BAR 2 from its file in sysfs, which stays open: another process can map it.

    At the end it is taken back from those that have mapped it.

    Args:
        pci: the device.
        claim: claims BAR 2; None if the binding cannot.
        give: called before another process works on it.

    Raises:
        OSError: the kernel does not map it.
    """
    # Not `resource2_wc`, which prefetchable BARs have, too: the processor may swap
    # stores to write-combining memory, and the rings rely on the order of theirs.
    skip = pci.bar_skip(2)
    with opened_resource(pci, 2) as fd:
        file = WindowFile(fd, skip, give=give)
        with closing(Mapping(fd, pci.bar_size(2), skip=skip)) as mapping:
            yield MappedWindow(mapping, file)
        # Our own mapping is gone: the claim takes away all that there are.
        holders.take_back(pci, file, claim)


def mapped(pci: PciDevice, binding: str, stack: ExitStack) -> PciBound:
    """Map the BARs of a device whose memory is switched on.

    Raises:
        Unusable: the kernel does not map its BARs.
    """
    try:
        if left := holders.left_by_a_killed_agent(pci):
            log.warning(
                "%s: %s has the window mapped, from an agent that was killed: end that "
                "process, as nothing keeps it from the rings",
                *(pci.address, ", ".join(left)),
            )
        registers = stack.enter_context(mapped_resource(pci, 0, Registers.SIZE))
        bar = stack.enter_context(mapped_window(pci))
    except OSError as error:
        raise Unusable(
            f"{pci.address}: its BARs can't be mapped: {error.strerror} "
            "(kernel lockdown? another driver?)",
            code="G080",
        ) from error
    return PciBound(
        place=pci,
        binding=binding,
        registers=registers,
        bar=bar,
        vector_count=pci.msix_vectors or 0,
        vectors=(),
        undo=stack.pop_all(),
    )
