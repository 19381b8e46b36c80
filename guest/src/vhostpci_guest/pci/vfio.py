# SPDX-License-Identifier: Apache-2.0
"""Binding by vfio-pci: each MSI-X vector signals an eventfd.

vfio-pci needs a vIOMMU in the slave VM, though ivshmem does no DMA and so nothing is
mapped for it.  The ioctls and structures are those of linux/vfio.h.

VFIO is for the registers and the interrupts.  The window is mapped from sysfs, so that
it has a file which the agent can give to another process: while any process has a copy
of a VFIO descriptor, the kernel waits with an unbind and an unplug, so none is given
away.
"""

import errno
import fcntl
import logging
import os
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from ..dataplane.mapping import Mapping
from ..errors import Unusable
from ..eventfds import new_eventfd
from ..interfaces import nothing
from . import hold, holders, sysfs
from .binding_names import VFIO
from .config_space import COMMAND, COMMAND_MASTER, COMMAND_MEMORY
from .ivshmem import MappedWindow, PciBound, Registers
from .sysfs_device import PciDevice

log = logging.getLogger(__name__)

DRIVER = "vfio-pci"

GRACE = 3.0
"""Seconds beyond `hold.LINGER` for a group: the reset at its end takes one."""
PAUSE = 0.02

_REFUSED = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOENT)
"""How the kernel refuses a BAR's file in sysfs; with EINVAL if a driver has claimed the
BAR, and the kernel has IO_STRICT_DEVMEM."""

_NO_IOMMU = (
    "the slave VM has no vIOMMU; give its QEMU `-M q35,kernel-irqchip=split -device "
    "intel-iommu,intremap=on` and its kernel `intel_iommu=on`"
)


def _io(number: int) -> int:
    return ord(";") << 8 | 100 + number


GET_API_VERSION = _io(0)
CHECK_EXTENSION = _io(1)
SET_IOMMU = _io(2)
GROUP_GET_STATUS = _io(3)
GROUP_SET_CONTAINER = _io(4)
GROUP_GET_DEVICE_FD = _io(6)
DEVICE_GET_REGION_INFO = _io(8)
DEVICE_GET_IRQ_INFO = _io(9)
DEVICE_SET_IRQS = _io(10)

API_VERSION = 0
TYPE1V2_IOMMU = 3
GROUP_VIABLE = 1
REGION_MMAP = 4
MSIX_INDEX, REQUEST_INDEX = 2, 4
CONFIG_REGION = 7
IRQ_DATA_EVENTFD, IRQ_ACTION_TRIGGER = 4, 32

_group_status = struct.Struct("=II")
_region_info = struct.Struct("=IIIIQQ")
_irq_info = struct.Struct("=IIII")
_irq_set = struct.Struct("=IIIII")


@dataclass(frozen=True, slots=True)
class Region:
    """A BAR, or the configuration space: a part of the file that is the device."""

    mappable: bool
    size: int
    offset: int


def why_not(pci: PciDevice) -> str | None:
    """Return why this binding cannot work, or None if nothing speaks against it."""
    if pci.iommu_group is None:
        return _NO_IOMMU
    return pci.system.load(DRIVER, dry=True)


def bind(pci: PciDevice) -> PciBound:
    """Bind a device that is claimed.

    Raises:
        Unusable: the slave VM lacks what vfio-pci needs.
        OSError: the kernel refuses.
    """
    group = pci.iommu_group
    if group is None:
        raise Unusable(f"{pci.address}: {_NO_IOMMU}", code="G090")
    if why := pci.system.load(DRIVER):
        raise Unusable(why, code="G091")
    with ExitStack() as stack:
        stack.enter_context(pci.bound(DRIVER))
        _take_back(pci, group)
        device = _open_device(pci, group, stack)
        _switch_on(device)
        held = Held(pci, device)
        stack.callback(held.end)
        registers = _map(pci, device, 0, stack)
        bar = map_window(pci, stack, lambda undo: _map(pci, device, 2, undo), held)
        vectors = _interrupts(device, stack)
        return PciBound(
            place=pci,
            binding=VFIO,
            registers=registers,
            bar=bar,
            vector_count=len(vectors),
            vectors=vectors,
            request=_request(device, stack),
            undo=stack.pop_all(),
        )


def _take_back(pci: PciDevice, group: str) -> None:
    """Take the window from processes that an earlier agent gave it to."""
    try:
        left = holders.left_by_a_killed_agent(pci)
    except OSError as error:
        log.info(
            "%s: who has its window mapped can't be found out: %s", pci.address, error
        )
        return
    if not left:
        return
    # VFIO has a claim until the device is closed, so it is opened for this alone.
    with ExitStack() as undo:
        _map(pci, _open_device(pci, group, undo), 2, undo)
    log.warning(
        "%s: the window was taken from %s, which had it from an agent that was killed",
        *(pci.address, ", ".join(left)),
    )


def _open(pci: PciDevice, name: str, stack: ExitStack) -> int:
    fd = pci.system.open(pci.system.dev / "vfio" / name)
    stack.callback(os.close, fd)
    return fd


def _open_group(pci: PciDevice, group: str, stack: ExitStack) -> int:
    """Open a group; wait while a helper of a killed agent has a device of it open."""
    end = time.monotonic() + hold.LINGER + GRACE
    while True:
        try:
            return _open(pci, group, stack)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() >= end:
                raise
        time.sleep(PAUSE)


def _open_device(pci: PciDevice, group: str, stack: ExitStack) -> int:
    """Return the device's descriptor, in a new VFIO container."""
    container = _open(pci, "vfio", stack)
    if (
        fcntl.ioctl(container, GET_API_VERSION) != API_VERSION
        or fcntl.ioctl(container, CHECK_EXTENSION, TYPE1V2_IOMMU) != 1
    ):
        raise Unusable(
            "the kernel's VFIO has no type 1 IOMMU: modprobe vfio_iommu_type1",
            code="G092",
        )
    group_fd = _open_group(pci, group, stack)
    status = bytearray(_group_status.pack(_group_status.size, 0))
    fcntl.ioctl(group_fd, GROUP_GET_STATUS, status)
    # A group is viable if each of its devices has a VFIO driver or none: a device of
    # the same group could reach the memory of the others by DMA.
    if not _group_status.unpack(status)[1] & GROUP_VIABLE:
        raise Unusable(
            f"{pci.address} shares IOMMU group {group} with devices of other drivers: "
            "put it alone on a PCIe root port or bus",
            code="G093",
        )
    # In this order (Linux, "VFIO Usage Example"): a container takes an IOMMU only once
    # it has a group, and a group gives its devices only once it has an IOMMU.
    fcntl.ioctl(group_fd, GROUP_SET_CONTAINER, struct.pack("=i", container))
    fcntl.ioctl(container, SET_IOMMU, TYPE1V2_IOMMU)
    name = bytearray(pci.address.encode() + b"\0")
    device: int = fcntl.ioctl(group_fd, GROUP_GET_DEVICE_FD, name)
    stack.callback(os.close, device)
    return device


def _region(device: int, index: int) -> Region:
    # The first word of each structure is its length (argsz), from which the kernel
    # knows the version of the structure that we were built with.
    info = bytearray(_region_info.pack(_region_info.size, 0, index, 0, 0, 0))
    fcntl.ioctl(device, DEVICE_GET_REGION_INFO, info)
    _, flags, _, _, size, offset = _region_info.unpack(info)
    return Region(bool(flags & REGION_MMAP), size, offset)


def _switch_on(device: int) -> None:
    """Switch the device's BARs and its MSI-X messages on."""
    # An MSI-X message is a write to memory, so without the bus-master bit no interrupt
    # ever arrives; vfio-pci clears the bit when the device is opened.
    at = _region(device, CONFIG_REGION).offset + COMMAND
    (command,) = struct.unpack("<H", os.pread(device, 2, at))
    command |= COMMAND_MEMORY | COMMAND_MASTER
    os.pwrite(device, struct.pack("<H", command), at)


class Held:
    """A device that stays open for a moment if we are killed, once it is called.

    Args:
        pci: the device.
        device: its descriptor.
    """

    def __init__(self, pci: PciDevice, device: int) -> None:
        self._pci = pci
        self._device = device
        self._held = False

    def __call__(self) -> None:
        """Have it held: another process is about to work on its window."""
        if self._held:
            return
        try:
            self._pci.system.hold(self._pci.address, self._device)
            self._held = True
        except (Unusable, OSError) as error:
            log.warning(
                "%s: if this agent is killed, what works the rings may read ones for a "
                "moment, and break them: %s",
                *(self._pci.address, error),
            )

    def end(self) -> None:
        """Have it held no more: the kernel waits for the copy at an unplug, too."""
        if not self._held:
            return
        try:
            self._pci.system.let_close(self._pci.address)
        except (Unusable, OSError) as error:
            log.warning("%s: a copy of it may stay open: %s", self._pci.address, error)


def map_window(
    pci: PciDevice,
    stack: ExitStack,
    by_vfio: Callable[[ExitStack], Mapping],
    give: Callable[[], None] = nothing,
) -> MappedWindow:
    """Map BAR 2 from sysfs if the kernel allows that, else through VFIO.

    Never through both: Debian's kernels refuse to map a BAR from sysfs that a driver
    has claimed, and take away what is mapped.  VFIO claims each BAR when it is first
    mapped, and has it until the device is closed; so that is done at the end, to take
    the window back from other processes (pci/holders.py).  From commit
    05f2a68b407a on ("vfio/pci: Set up BAR resources and maps in
    vfio_pci_core_enable()", 2026) it claims all of them when the device is opened.

    Args:
        pci: the device, which is open and switched on.
        stack: gets what undoes it.
        by_vfio: maps it through VFIO, until the stack is closed.
        give: called before another process works on the window.
    """

    def claim() -> None:
        with ExitStack() as undo:
            by_vfio(undo)

    try:
        if not pci.system.locked_down:
            return stack.enter_context(sysfs.mapped_window(pci, claim, give))
        why = "kernel lockdown forbids to map BARs from sysfs; take --bind kmod"
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        why = f"the kernel does not map BAR 2 from sysfs ({error.strerror})"
    log.info("%s: no other process can map its window: %s", pci.address, why)
    return MappedWindow(by_vfio(stack), no_file=why)


def _map(pci: PciDevice, device: int, bar: int, stack: ExitStack) -> Mapping:
    region = _region(device, bar)
    if not region.mappable:
        raise Unusable(
            f"{pci.address}: vfio does not map BAR {bar} ({region.size} bytes), "
            "because it shares a page with another: use --bind uio or sysfs",
            code="G094",
        )
    size = min(region.size, Registers.SIZE) if bar == 0 else region.size
    mapping = Mapping(device, size, offset=region.offset, huge=True)
    stack.callback(mapping.close)
    return mapping


def _interrupts(device: int, stack: ExitStack) -> list[int]:
    """Give each MSI-X vector an eventfd; return the eventfds."""
    info = bytearray(_irq_info.pack(_irq_info.size, 0, MSIX_INDEX, 0))
    fcntl.ioctl(device, DEVICE_GET_IRQ_INFO, info)
    count = _irq_info.unpack(info)[3]
    fds = []
    for _ in range(count):
        fds.append(new_eventfd())
        stack.callback(os.close, fds[-1])
    if fds:
        # All in one call: for vectors that are added later the kernel switches MSI-X
        # off and on again, and an interrupt in between is lost.
        fcntl.ioctl(device, DEVICE_SET_IRQS, irq_set(MSIX_INDEX, fds))
    return fds


def _request(device: int, stack: ExitStack) -> int:
    """Return an eventfd by which the kernel asks for the device.

    It asks when the device is unplugged or its driver unbound, and then waits, without
    a limit, until we have closed the device.
    """
    fd = new_eventfd()
    stack.callback(os.close, fd)
    fcntl.ioctl(device, DEVICE_SET_IRQS, irq_set(REQUEST_INDEX, [fd]))
    return fd


def irq_set(index: int, fds: list[int]) -> bytes:
    """Return a vfio_irq_set that lets each interrupt of `index` trigger an eventfd."""
    data = struct.pack(f"={len(fds)}i", *fds)
    flags = IRQ_DATA_EVENTFD | IRQ_ACTION_TRIGGER
    head = _irq_set.pack(_irq_set.size + len(data), flags, index, 0, len(fds))
    return head + data
