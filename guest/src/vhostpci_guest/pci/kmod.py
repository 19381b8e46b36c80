# SPDX-License-Identifier: Apache-2.0
"""Binding by our own driver, uio_vhostpci: eventfds, and a cached window.

It needs no vIOMMU, and is the only binding whose window the processor caches.  The top
of kmod/driver.c says what its node does.
"""

import errno
import mmap
import os
import struct
from contextlib import ExitStack

from ..dataplane.mapping import Mapping
from ..errors import Unusable
from ..eventfds import new_eventfd
from . import holders
from .binding_names import KMOD
from .control_node import ControlNode
from .ivshmem import MappedWindow, PciBound, Registers
from .sysfs_device import UIO_VHOSTPCI, PciDevice

DRIVER = UIO_VHOSTPCI

_OLD = (errno.ENOSYS, errno.EIO)
"""How a write to a UIO node fails if its driver has no `irqcontrol`, or no irq."""
_NO_NODE = (
    f"there is no {{}}: this {DRIVER} is older than the agent (build it again, rmmod "
    f"{DRIVER} and modprobe {DRIVER}), or this container was not given the node; "
    "--bind vfio, uio or sysfs can do without it"
)
_arm = struct.Struct("=i")


def why_not(pci: PciDevice) -> str | None:
    """Return why this binding cannot work, or None if nothing speaks against it."""
    if (size := pci.bar_size(2)) < mmap.PAGESIZE:
        return f"BAR 2 has {size} bytes, less than a page: it shows no memory"
    if pci.msix_vectors == 0:
        return "no MSI-X: it is an ivshmem-plain, take ivshmem-doorbell"
    return pci.system.load(DRIVER, dry=True)


def bind(pci: PciDevice) -> PciBound:
    """Bind a device that is claimed.

    Raises:
        Unusable: the module cannot be loaded, or refuses the device.
        OSError: the kernel refuses.
    """
    if why := pci.system.load(DRIVER):
        raise Unusable(why, code="G073")
    with ExitStack() as stack:
        stack.enter_context(pci.bound(DRIVER))
        node = stack.enter_context(pci.uio_node())
        registers = _map(pci, node, 0, stack)
        mapping = _map(pci, node, 1, stack)
        control, no_control = _control(pci, node, stack)
        bar = _window(pci, mapping, control, no_control, stack)
        vectors = _interrupts(pci, node, stack)
        return PciBound(
            place=pci,
            binding=KMOD,
            registers=registers,
            bar=bar,
            vector_count=len(vectors),
            vectors=vectors,
            # The module makes poll() report an error on its node once the function is
            # unbound or unplugged, so the node is also the request.
            request=node,
            ties=control,
            undo=stack.pop_all(),
        )


def _map(pci: PciDevice, node: int, number: int, stack: ExitStack) -> Mapping:
    """Map the memory that UIO lists under a number."""
    bar = 2 * number
    # UIO (Linux, "The Userspace I/O HOWTO"): mapping N starts at offset N pages,
    # whatever the sizes of the mappings are.
    size = min(pci.bar_size(bar), Registers.SIZE) if bar == 0 else pci.bar_size(bar)
    try:
        mapping = Mapping(
            node,
            size,
            offset=number * mmap.PAGESIZE,
            skip=pci.bar_skip(bar),
            huge=True,
        )
    except OSError as error:
        raise Unusable(
            f"{pci.address}: {DRIVER} does not map BAR {bar} ({size} bytes): "
            f"{error.strerror}; see dmesg",
            code="G074",
        ) from error
    stack.callback(mapping.close)
    return mapping


def _control(
    pci: PciDevice, node: int, stack: ExitStack
) -> tuple[ControlNode | None, str]:
    """Open the module's second node; return it, or why not."""
    path = pci.system.dev / DRIVER
    try:
        fd = pci.system.open(path)
    except FileNotFoundError:
        return None, _NO_NODE.format(path)
    except OSError as error:
        return None, f"{path} can't be opened: {error.strerror}"
    stack.callback(os.close, fd)
    return ControlNode(fd, node, pci.address), ""


def _window(
    pci: PciDevice,
    mapping: Mapping,
    control: ControlNode | None,
    why_not: str,
    stack: ExitStack,
) -> MappedWindow:
    """Add the file that another process can map; at the end it is taken back."""
    if control is None:
        return MappedWindow(mapping, no_file=why_not)
    try:
        file = control.window_file()
    except OSError as error:
        return MappedWindow(
            mapping, no_file=f"{DRIVER} makes no window file: {error.strerror}"
        )
    stack.callback(os.close, file.fd)
    stack.callback(holders.take_back, pci, file, control.revoke_window)
    return MappedWindow(mapping, file)


def _interrupts(pci: PciDevice, node: int, stack: ExitStack) -> list[int]:
    """Give each MSI-X vector an eventfd; return the eventfds."""
    fds = []
    # No interrupt is lost until a vector has its eventfd: the module requests, and so
    # unmasks, a vector only then, and the device keeps what is pending.
    for vector in range(pci.msix_vectors or 0):
        fds.append(new_eventfd())
        stack.callback(os.close, fds[-1])
        try:
            os.write(node, armed(vector, fds[-1]))
        except OSError as error:
            raise Unusable(
                _why_no_interrupts(pci, vector, error), code="G075"
            ) from error
    return fds


def armed(vector: int, fd: int) -> bytes:
    """Return the word whose write lets a vector signal an eventfd."""
    # 20 bits for the descriptor: Linux's default limit for descriptors of a process is
    # 2^20 (fs.nr_open), so all smaller numbers fit.
    return _arm.pack(vector << 20 | fd)


def _why_no_interrupts(pci: PciDevice, vector: int, error: OSError) -> str:
    if error.errno in _OLD:
        return (
            f"{pci.address}: this {DRIVER} gives no interrupts: it is older than the "
            f"agent, or not ours; build it again, rmmod {DRIVER} and modprobe {DRIVER}"
        )
    return (
        f"{pci.address}: {DRIVER} refuses vector {vector}: {error.strerror}; see dmesg"
    )
