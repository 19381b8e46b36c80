# SPDX-License-Identifier: Apache-2.0
"""The arguments that a stock QEMU, 7.2 to 10.x, needs to be a master or a slave."""

import shlex
import zlib

from .config import DeviceConfig

Args = list[tuple[str, str]]
"""Options with their values, in order."""


def master(config: DeviceConfig, *, vectors: int | None = None) -> Args:
    """Return what makes a VM the master of this device.

    `reconnect=1` is what brings its link back after a restart of the daemon;
    deprecated from 9.2 on (reconnect-ms=), and understood until at least 10.2.
    `ctrl_guest_offloads=off`: vhost-user cannot tell us when the guest turns
    offloads off at run time, so the guest must not be able to.
    """
    name = _id(config)
    return [
        ("-m", f"{config.memory >> 20}M"),
        *arena(config),
        (
            "-chardev",
            f"socket,id={name},path={_escape(config.vhost_user)},reconnect=1",
        ),
        ("-netdev", f"vhost-user,id={name}-net,chardev={name}{_queues(config)}"),
        ("-device", _card(config, vectors)),
    ]


def arena(config: DeviceConfig) -> Args:
    """Return what makes the arena a VM's memory."""
    name = f"{_id(config)}-memory"
    return [
        ("-machine", f"memory-backend={name}"),
        (
            "-object",
            f"memory-backend-file,id={name},size={config.memory >> 20}M,"
            f"mem-path={_escape(config.arena)},share=on",
        ),
    ]


def slave(config: DeviceConfig) -> Args:
    """Return what makes a VM the slave of this device."""
    name = _id(config)
    return [
        ("-chardev", f"socket,id={name},path={_escape(config.ivshmem)}"),
        (
            "-device",
            f"ivshmem-doorbell,id={name}-window,chardev={name},"
            f"vectors={config.vectors}",
        ),
    ]


SLAVE_HINT = """\
# For interrupts through vfio-pci the slave needs a vIOMMU as well; add
#   -machine q35,kernel-irqchip=split -device intel-iommu,intremap=on
# and intel_iommu=on to its kernel's command line.  Without, the agent polls."""
MASTER_HINT = """\
# QEMU 7.2 without KVM crashes when this card uses MSI-X: add --tcg-7.2 there."""


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


def _id(config: DeviceConfig) -> str:
    return f"vhostpci-{config.name}"


def _queues(config: DeviceConfig) -> str:
    return f",queues={config.queue_pairs}" if config.queue_pairs > 1 else ""


def _card(config: DeviceConfig, vectors: int | None) -> str:
    """Return the card: with several pairs, a vector for each ring and two more."""
    card = (
        f"virtio-net-pci,netdev={_id(config)}-net,mac={mac(config.name)},"
        "ctrl_guest_offloads=off"
    )
    if config.queue_pairs > 1:
        card += ",mq=on"
        vectors = config.rings + 2 if vectors is None else vectors
    return card if vectors is None else f"{card},vectors={vectors}"


def _escape(value: object) -> str:
    """QEMU's option parser takes a doubled comma for one."""
    return str(value).replace(",", ",,")
