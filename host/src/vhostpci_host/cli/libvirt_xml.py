# SPDX-License-Identifier: Apache-2.0
"""The XML that libvirt, 8.2 or later, needs for a domain to be a master or a slave.

A domain that is complete and valid, with what vhostpci needs and no disk: a user
defines it as it is and adds to it, or takes the elements into a domain that is there.

What libvirt has no element for is set on its devices by `<qemu:override>`, which
names a device by its alias; an alias of a user's begins with `ua-`.  The arena as the
master's RAM is the one thing that takes `<qemu:commandline>`: libvirt chooses the
files behind `<memoryBacking>` itself.  Its own memory object stays unused then, and
takes no memory, since nothing ever touches it.
"""

from xml.etree import ElementTree as ET

from ..config.device import MIB, DeviceConfig, Mode, window_size
from ..hotplug.ids import object_id
from ..hotplug.shmem_xml import add_element, shmem
from ..interfaces import Plug
from . import qemu_args

QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("qemu", QEMU)

Properties = dict[str, bool | int]
"""What QEMU calls properties of a device, by name."""

GIB = 2**30
OTHER_PORTS = 4
"""Ports before those for windows: libvirt gives other devices the first free ones."""
STATIC_SLOT = 0x10
"""A slot of bus 0 that libvirt gives nobody.

Left to itself, it would put an ivshmem device behind a bridge to conventional PCI:
one IOMMU group with all that are there.
"""


def master(
    config: DeviceConfig,
    ram: int | None = None,
    *,
    kind: str = "kvm",
    vectors: int | None = None,
) -> ET.Element:
    """Return the domain of this device's master.

    `<reconnect>` and `ctrl_guest_offloads` are there for what `qemu.master` says.

    Args:
        config: the device's.
        ram: the size of its memory in attach mode, where we do not know it.
        kind: the domain's type, `kvm` or `qemu`.
        vectors: MSI-X vectors of the card, where libvirt's number is not right.

    Raises:
        HostError: `ram` is needed.
    """
    arena = config.mode is Mode.ARENA
    size = config.memory if arena else qemu_args.known(config, ram)
    domain = _domain(f"{config.name}-master", kind, size)
    if not arena:
        domain.append(_shared_memory())
    add_element(add_element(domain, "features"), "acpi")
    alias = _alias(config.name)
    add_element(domain, "devices").append(_interface(config, alias))
    if arena:
        domain.append(_arena(config))
    properties: Properties = {"ctrl_guest_offloads": False}
    if vectors is not None:
        properties["vectors"] = vectors
    domain.append(_override({alias: properties}))
    return domain


def slave(
    config: DeviceConfig,
    ram: int | None = None,
    *,
    kind: str = "kvm",
    windows: int = 1,
) -> ET.Element:
    """Return the domain of this device's slave.

    It has the device from its start; where the daemon plugs devices in, as always in
    attach mode, it has ports for them instead.

    Args:
        config: the device's.
        ram: the size of the master's memory in attach mode.
        kind: the domain's type, `kvm` or `qemu`.
        windows: how many files the master's memory has in attach mode.

    Raises:
        HostError: `ram` is needed.
    """
    name = config.slave_libvirt or f"{config.name}-slave"
    domain = _domain(name, kind, GIB)
    features = add_element(domain, "features")
    add_element(features, "acpi")
    add_element(features, "apic")
    add_element(features, "ioapic", driver="qemu")
    devices = add_element(domain, "devices")
    if config.plugged or config.mode is Mode.ATTACH:
        domain.append(_override(_add_ports(devices, config, ram, windows)))
    else:
        devices.append(_static(config))
    add_element(add_element(devices, "iommu", model="intel"), "driver", intremap="on")
    return domain


def hint(config: DeviceConfig, role: str) -> str:
    """Return what to tell whoever gets this device's domain."""
    if role == "slave":
        also, more = "<features>", SLAVE_HINT
    elif config.mode is Mode.ARENA:
        also, more = "<memory>", ARENA_HINT
    else:
        also, more = "<memoryBacking>", ATTACH_HINT
    return f"{HINT} {also}.\n{more}"


HINT = """\
# `virsh define` takes this as it is; it has no disk yet.  To a domain that is there
# (virsh edit) add all that is in <devices> and in qemu:..., and"""
SLAVE_HINT = """\
# For interrupts the guest's kernel needs intel_iommu=on; without, the agent polls."""
ARENA_HINT = """\
# The arena is all of its RAM: no <numa>, and no <memoryBacking>."""
ATTACH_HINT = """\
# Where the slave is a VM, each file of the RAM must have a power of two of bytes."""


def _domain(name: str, kind: str, memory: int) -> ET.Element:
    domain = ET.Element("domain", type=kind)
    add_element(domain, "name").text = name
    add_element(domain, "memory", unit="MiB").text = str(memory // MIB)
    add_element(domain, "vcpu").text = "1"
    add_element(
        add_element(domain, "os"), "type", arch="x86_64", machine="q35"
    ).text = "hvm"
    return domain


def _shared_memory() -> ET.Element:
    """Return what makes the master's RAM a file that others can map."""
    backing = ET.Element("memoryBacking")
    add_element(backing, "source", type="memfd")
    add_element(backing, "access", mode="shared")
    return backing


def _arena(config: DeviceConfig) -> ET.Element:
    """Return what makes the arena the master's RAM."""
    commandline = ET.Element(f"{{{QEMU}}}commandline")
    for word in qemu_args.flat(qemu_args.arena(config)):
        add_element(commandline, f"{{{QEMU}}}arg", value=word)
    return commandline


def _interface(config: DeviceConfig, alias: str) -> ET.Element:
    """Return the card; libvirt itself finds `mq=on` and the vectors for its queues."""
    card = ET.Element("interface", type="vhostuser")
    add_element(card, "mac", address=qemu_args.mac(config.name))
    source = add_element(
        card, "source", type="unix", path=str(config.vhost_user), mode="client"
    )
    add_element(source, "reconnect", enabled="yes", timeout="1")
    add_element(card, "model", type="virtio")
    if config.queue_pairs > 1:
        add_element(card, "driver", queues=str(config.queue_pairs))
    add_element(card, "alias", name=alias)
    return card


def _static(config: DeviceConfig) -> ET.Element:
    size = window_size(config.memory)
    plug = Plug(window=0, socket=config.ivshmem, vectors=config.vectors, size=size)
    return shmem(object_id(config.name, 0), plug, bus=0, slot=STATIC_SLOT)


def _add_ports(
    devices: ET.Element, config: DeviceConfig, ram: int | None, windows: int
) -> dict[str, Properties]:
    """Add a port for each window; return what must be overridden in them."""
    add_element(devices, "controller", type="pci", index="0", model="pcie-root")
    for _ in range(OTHER_PORTS):
        add_element(devices, "controller", type="pci", model="pcie-root-port")
    size, count = qemu_args.room(config, ram, windows)
    aliases = [f"{_alias(config.name)}_port{i}" for i in range(count)]
    for alias in aliases:
        port = add_element(devices, "controller", type="pci", model="pcie-root-port")
        add_element(port, "alias", name=alias)
    return {alias: {"pref64-reserve": size} for alias in aliases}


def _override(devices: dict[str, Properties]) -> ET.Element:
    """Return the properties that the devices with these aliases get from us."""
    override = ET.Element(f"{{{QEMU}}}override")
    for alias, properties in devices.items():
        device = add_element(override, f"{{{QEMU}}}device", alias=alias)
        frontend = add_element(device, f"{{{QEMU}}}frontend")
        for name, value in properties.items():
            kind = "bool" if isinstance(value, bool) else "unsigned"
            words = {"name": name, "type": kind, "value": str(value).lower()}
            add_element(frontend, f"{{{QEMU}}}property", **words)
    return override


def _alias(name: str) -> str:
    """Return the alias that `name` gives: it can have no '.', and stays unique."""
    return "ua-vhostpci-" + name.replace("_", "__").replace(".", "_-")
