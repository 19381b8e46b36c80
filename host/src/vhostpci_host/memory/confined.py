# SPDX-License-Identifier: Apache-2.0
"""What a confined master may show us: its shared region, whole, and nothing else.

QEMU shows each memory that has a descriptor, also a memfd with share=off, and so we get
it.  It goes no further: the slave is given what was declared, or nothing.
"""

from vhostpci_shared.vhost_user import MemRegion
from vhostpci_shared.wire import ProtocolError

from ..config.commands import master_arguments
from ..config.device import MIB, DeviceConfig

PRIVATE = (
    "all other memory of a confined master is private (memory-backend-ram; of a "
    "memory-backend-memfd QEMU shows us even one with share=off)"
)


def layout(config: DeviceConfig) -> str:
    """Return what to start a confined master with."""
    return (
        f"the memory of `{master_arguments(config.name, config.mode)}` (for libvirt "
        "`xml`, for aarch64 with --machine virt)"
    )


def check_region(region: MemRegion, config: DeviceConfig) -> None:
    """Check that a region is as large as the whole shared region.

    Raises:
        ProtocolError: it is not; the text says what to change.
    """
    if region.mmap_offset or region.size != config.shared:
        raise ProtocolError(
            f"the memory at {region.guest_addr:#x} has {region.size / MIB:g} MiB from "
            f"{region.mmap_offset:#x} of its file on, and the shared region of this "
            f"confined device has {config.shared // MIB} MiB from 0 on: start the "
            f"master with {layout(config)}",
            code="P081",
        )


def check_file(region: MemRegion, size: int, config: DeviceConfig) -> None:
    """Check that a file of the master's has the shared region and nothing else.

    Raises:
        ProtocolError: it is not so; the text says what to change.
    """
    if size != config.shared:
        raise ProtocolError(
            f"the memory at {region.guest_addr:#x} is in a file of {size / MIB:g} MiB, "
            f"and the shared region of this confined device has "
            f"{config.shared // MIB} MiB: {PRIVATE}; start the master with "
            f"{layout(config)}",
            code="P082",
        )
    check_region(region, config)
