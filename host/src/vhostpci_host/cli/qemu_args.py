# SPDX-License-Identifier: Apache-2.0
"""The arguments that a stock QEMU, 7.2 to 10.x, needs to be a master or a slave."""

import shlex
import zlib

from ..config.device import DeviceConfig, Mode, window_size
from ..errors import HostError
from ..hotplug.ids import DEVICE, object_id

Args = list[tuple[str, str]]
"""Options with their values, in order."""


def master(
    config: DeviceConfig, ram: int | None = None, *, vectors: int | None = None
) -> Args:
    """Return what makes a VM the master of this device.

    `ram` is the size of its memory in attach mode, where we do not know it.
    `reconnect=1` is what brings its link back after a restart of the daemon;
    deprecated from 9.2 on (reconnect-ms=), and understood until at least 10.2.
    `ctrl_guest_offloads=off`: vhost-user cannot tell us when the guest turns
    offloads off at run time, so the guest must not be able to.

    Raises:
        HostError: `ram` is needed.
    """
    name = object_id(config.name)
    attached = config.mode is Mode.ATTACH
    size = known(config, ram) if attached else config.memory
    return [
        ("-m", f"{size >> 20}M"),
        *(_shared_memory(config, size) if attached else arena(config)),
        (
            "-chardev",
            f"socket,id={name},path={_escape(config.vhost_user)},reconnect=1",
        ),
        ("-netdev", f"vhost-user,id={name}-net,chardev={name}{_queues(config)}"),
        ("-device", _card(config, vectors)),
    ]


def arena(config: DeviceConfig) -> Args:
    """Return what makes the arena a VM's memory."""
    where = f"mem-path={_escape(config.arena)},share=on"
    return _backend(config, "memory-backend-file", config.memory, where)


def _shared_memory(config: DeviceConfig, size: int) -> Args:
    """Return an example of memory that a slave can have."""
    return _backend(config, "memory-backend-memfd", size, "share=on")


def _backend(config: DeviceConfig, kind: str, size: int, where: str) -> Args:
    name = f"{object_id(config.name)}-memory"
    return [
        ("-machine", f"memory-backend={name}"),
        ("-object", f"{kind},id={name},size={size >> 20}M,{where}"),
    ]


def known(config: DeviceConfig, ram: int | None) -> int:
    """Return the size of the master's memory in attach mode.

    Raises:
        HostError: `ram` is needed.
    """
    if ram is None:
        raise HostError(
            f"{config.name}: in attach mode the master has what memory it likes: give "
            "its size for an example (--mode attach --memory 4G)"
        )
    return ram


def slave(config: DeviceConfig, ram: int | None = None, *, windows: int = 1) -> Args:
    """Return what makes a VM the slave of this device.

    `ram` is the size of the master's memory and `windows` the number of its files, in
    attach mode.  A device that is plugged needs a port each, with room for its BAR.

    Raises:
        HostError: `ram` is needed; there is no way to plug the windows.
    """
    name = object_id(config.name)
    if config.slave_qmp is not None:
        qmp = f"unix:{_escape(config.slave_qmp)},server=on,wait=off"
        return [("-machine", "q35"), *_ports(config, ram, windows), ("-qmp", qmp)]
    if config.mode is Mode.ATTACH or config.slave_libvirt is not None:
        raise HostError(
            f"{config.name}: windows come and go with the master: a slave VM has them "
            "plugged (--slave-qmp SOCKET), one of libvirt's takes no arguments, and a "
            "slave process needs none (vhostpci-guest run --socket)"
        )
    return [
        ("-chardev", f"socket,id={name},path={_escape(config.ivshmem)}"),
        (
            "-device",
            f"ivshmem-doorbell,id={name}{DEVICE},chardev={name},"
            f"vectors={config.vectors}",
        ),
    ]


def _ports(config: DeviceConfig, ram: int | None, windows: int) -> Args:
    """Return a root port for each window, its number unlike any other device's."""
    size, count = room(config, ram, windows)
    number = zlib.crc32(config.name.encode())
    chassis, slot = 1 + number % 255, 1 + (number >> 8) % 4000
    return [
        (
            "-device",
            f"pcie-root-port,id={object_id(config.name)}-port{index},chassis={chassis},"
            f"slot={slot + index},pref64-reserve={size >> 20}M",
        )
        for index in range(count)
    ]


def room(config: DeviceConfig, ram: int | None, windows: int) -> tuple[int, int]:
    """Return how many bytes each of a slave's ports must have, and how many ports.

    Twice what its window has: a window begins at a multiple of its size, and what
    SeaBIOS gives a port below 4 GiB begins at any megabyte.

    Raises:
        HostError: `ram` is needed, or no window of a VM can have that size.
    """
    if config.mode is Mode.ARENA:
        return 2 * window_size(config.memory), 1
    size = known(config, ram)
    _check_power_of_two(config, size)
    return 2 * size, windows + 1  # the one with the doorbells


SLAVE_HINT = """\
# For interrupts through vfio-pci the slave needs a vIOMMU as well; add
#   -machine q35,kernel-irqchip=split -device intel-iommu,intremap=on
# and intel_iommu=on to its kernel's command line.  Without, the agent polls."""
MASTER_HINT = """\
# QEMU 7.2 without KVM crashes when this card uses MSI-X: add --tcg-7.2 there."""


def _check_power_of_two(config: DeviceConfig, size: int) -> None:
    if size & (size - 1):
        below = 1 << size.bit_length() - 1
        raise HostError(
            f"{config.name}: a slave VM cannot have a memory file of {size >> 20}M, as "
            f"its size is no power of two: give the master {below >> 20}M or "
            f"{2 * below >> 20}M (a slave process takes any)"
        )


def text(args: Args) -> str:
    """Return what may be pasted behind `qemu-system-x86_64`: one option a line."""
    return " \\\n".join(f"{option} {shlex.quote(value)}" for option, value in args)


def flat(args: Args) -> list[str]:
    """Return the arguments as exec() takes them."""
    return [word for pair in args for word in pair]


def mac(name: str) -> str:
    """Return a MAC address that follows from the name: QEMU gives all VMs the same."""
    tail = zlib.crc32(name.encode()).to_bytes(4, "big")[1:]
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in tail)


def _queues(config: DeviceConfig) -> str:
    return f",queues={config.queue_pairs}" if config.queue_pairs > 1 else ""


def _card(config: DeviceConfig, vectors: int | None) -> str:
    """Return the card: with several pairs, a vector for each ring and two more."""
    card = (
        f"virtio-net-pci,netdev={object_id(config.name)}-net,mac={mac(config.name)},"
        "ctrl_guest_offloads=off"
    )
    if config.queue_pairs > 1:
        card += ",mq=on"
        vectors = config.rings + 2 if vectors is None else vectors
    return card if vectors is None else f"{card},vectors={vectors}"


def _escape(value: object) -> str:
    """QEMU's option parser takes a doubled comma for one."""
    return str(value).replace(",", ",,")
