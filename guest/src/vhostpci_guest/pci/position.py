# SPDX-License-Identifier: Apache-2.0
"""Reading a device's IVPosition, and mapping its BARs from sysfs."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

from ..dataplane.mapping import Mapping
from ..errors import Unusable
from .config_space import memory_is_on
from .ivshmem import Registers
from .sysfs_device import UIO_VHOSTPCI, PciDevice


@contextmanager
def mapped_resource(device: PciDevice, bar: int, size: int) -> Iterator[Mapping]:
    """Map the start of a BAR from its file in sysfs.

    Raises:
        OSError: the kernel does not map it (lockdown; a driver has reserved it).
    """
    with opened_resource(device, bar) as fd:
        mapping = Mapping(fd, size, skip=device.bar_skip(bar))
    # The mapping lives without the descriptor.
    with closing(mapping):
        yield mapping


@contextmanager
def opened_resource(device: PciDevice, bar: int) -> Iterator[int]:
    """Open a BAR's file in sysfs.

    Raises:
        OSError: there is none, or it is not for us.
    """
    fd = device.system.open_attribute(device.path / f"resource{bar}", write=True)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _mapped_registers(device: PciDevice) -> Iterator[Mapping]:
    if device.driver != UIO_VHOSTPCI:
        with mapped_resource(device, 0, Registers.SIZE) as mapping:
            yield mapping
        return
    with device.uio_node() as node:
        mapping = Mapping(node, Registers.SIZE, skip=device.bar_skip(0))
        with closing(mapping):
            yield mapping


def read_position(device: PciDevice) -> int:
    """Return the IVPosition register of a device whose memory is switched on.

    Raises:
        Unusable: another process has the node of its driver open.
        OSError: the kernel does not map the registers.
    """
    with _mapped_registers(device) as mapping:
        registers = Registers(mapping)
        # Released here: a mapping cannot be closed while a view of it exists.
        try:
            return registers.iv_position
        finally:
            registers.release()


def find_position(device: PciDevice) -> int | None:
    """Return a device's IVPosition register; None while we may not read it.

    If the device's memory is off, it is switched on for the read, but only if no other
    agent, driver or process has the device.
    """
    with suppress(OSError, Unusable), ExitStack() as undo:
        # A read from a device whose memory is off gives all ones.  The claim keeps an
        # agent from binding the device before its memory is off again.
        if not memory_is_on(device.config()):
            undo.enter_context(device.claimed())
            undo.enter_context(device.enabled())
        return read_position(device)
    return None
