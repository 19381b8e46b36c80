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

from . import qemu
from .config import MIB, DeviceConfig, Mode, window_size
from .hotplug import object_id
from .ports import Plug

QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("qemu", QEMU)

Properties = dict[str, bool | int]
"""What QEMU calls properties of a device, by name."""

GIB = 2**30
MASTER_HINT = """\
# `virsh define` takes it as it is.  For a domain that is there (virsh edit): its RAM
# must be as large, without <numa>; take over all that is in <devices> and qemu:*."""
ATTACH_MASTER_HINT = """\
# `virsh define` takes it as it is.  For a domain that is there (virsh edit): take over
# <memoryBacking>, and all that is in <devices> and qemu:*.  The memory may be of any
# size for a slave that is a process; for one that is a VM, of a power of two."""
SLAVE_HINT = """\
# `virsh define` takes it as it is.  For a domain that is there (virsh edit): take over
# <features>, and all that is in <devices> and qemu:*.  For interrupts the guest's
# kernel needs intel_iommu=on; without, the agent polls."""

PORTS = 4
"""Ports that a printed slave has for windows to be plugged into."""
OTHER_PORTS = 4
"""Ports before them, for whatever else the domain has: libvirt takes the first free."""
RESERVE = 8 * 2**30
"""Bytes of address space that each port for windows has."""
STATIC_SLOT = 0x10
"""A slot of bus 0 that libvirt gives nobody.

Left to itself, it would put an ivshmem device behind a bridge to conventional PCI:
one IOMMU group with all that are there.
"""


def master(
    config: DeviceConfig, *, kind: str = "kvm", vectors: int | None = None
) -> ET.Element:
    """Return the domain of this device's master.

    `<reconnect>` and `ctrl_guest_offloads` are there for what `qemu.master` says.

    Args:
        config: the device's.
        kind: the domain's type, `kvm` or `qemu`.
        vectors: MSI-X vectors of the card, where libvirt's number is not right.
    """
    arena = config.mode is Mode.ARENA
    domain = _domain(f"{config.name}-master", kind, config.memory if arena else GIB)
    if not arena:
        domain.append(_shared_memory())
    _add(_add(domain, "features"), "acpi")
    alias = _alias(config.name)
    _add(domain, "devices").append(_interface(config, alias))
    if arena:
        domain.append(_arena(config))
    properties: Properties = {"ctrl_guest_offloads": False}
    if vectors is not None:
        properties["vectors"] = vectors
    domain.append(_override({alias: properties}))
    return domain


def slave(
    config: DeviceConfig,
    *,
    kind: str = "kvm",
    ports: int = PORTS,
    reserve: int = RESERVE,
) -> ET.Element:
    """Return the domain of this device's slave.

    It has the device from its start; where the daemon plugs devices in, as always in
    attach mode, it has ports for them instead.

    Args:
        config: the device's.
        kind: the domain's type, `kvm` or `qemu`.
        ports: how many windows can be plugged in at a time.
        reserve: bytes of the largest of them.
    """
    domain = _domain(f"{config.name}-slave", kind, GIB)
    features = _add(domain, "features")
    _add(features, "acpi")
    _add(features, "apic")
    _add(features, "ioapic", driver="qemu")
    devices = _add(domain, "devices")
    plugged = config.plugged or config.mode is Mode.ATTACH
    aliases = [_alias(f"port-{i}") for i in range(ports)] if plugged else []
    if plugged:
        _add_ports(devices, aliases)
    else:
        devices.append(_static(config))
    _add(_add(devices, "iommu", model="intel"), "driver", intremap="on")
    if aliases:
        domain.append(_override({a: {"pref64-reserve": reserve} for a in aliases}))
    return domain


def shmem(name: str, plug: Plug, *, bus: int | None, slot: int = 0) -> ET.Element:
    """Return a window's device, at a place of a PCI bus, or at one libvirt chooses."""
    element = ET.Element("shmem", name=name)
    _add(element, "model", type="ivshmem-doorbell")
    _add(element, "server", path=str(plug.socket))
    _add(element, "msi", vectors=str(plug.vectors), ioeventfd="on")
    if bus is not None:
        place = {"domain": "0x0000", "bus": f"{bus:#04x}", "slot": f"{slot:#04x}"}
        _add(element, "address", type="pci", **place, function="0x0")
    return element


def text(element: ET.Element) -> str:
    """Return it indented, as virsh does."""
    ET.indent(element)
    return ET.tostring(element, encoding="unicode")


def _domain(name: str, kind: str, memory: int) -> ET.Element:
    domain = ET.Element("domain", type=kind)
    _add(domain, "name").text = name
    _add(domain, "memory", unit="MiB").text = str(memory // MIB)
    _add(domain, "vcpu").text = "1"
    _add(_add(domain, "os"), "type", arch="x86_64", machine="q35").text = "hvm"
    return domain


def _shared_memory() -> ET.Element:
    """Return what makes the master's RAM a file that others can map."""
    backing = ET.Element("memoryBacking")
    _add(backing, "source", type="memfd")
    _add(backing, "access", mode="shared")
    return backing


def _arena(config: DeviceConfig) -> ET.Element:
    """Return what makes the arena the master's RAM."""
    commandline = ET.Element(f"{{{QEMU}}}commandline")
    for word in qemu.flat(qemu.arena(config)):
        _add(commandline, f"{{{QEMU}}}arg", value=word)
    return commandline


def _interface(config: DeviceConfig, alias: str) -> ET.Element:
    """Return the card; libvirt itself finds `mq=on` and the vectors for its queues."""
    card = ET.Element("interface", type="vhostuser")
    _add(card, "mac", address=qemu.mac(config.name))
    source = _add(
        card, "source", type="unix", path=str(config.vhost_user), mode="client"
    )
    _add(source, "reconnect", enabled="yes", timeout="1")
    _add(card, "model", type="virtio")
    if config.queue_pairs > 1:
        _add(card, "driver", queues=str(config.queue_pairs))
    _add(card, "alias", name=alias)
    return card


def _static(config: DeviceConfig) -> ET.Element:
    size = window_size(config.memory)
    plug = Plug(window=0, socket=config.ivshmem, vectors=config.vectors, size=size)
    return shmem(object_id(config.name, 0), plug, bus=0, slot=STATIC_SLOT)


def _add_ports(devices: ET.Element, aliases: list[str]) -> None:
    """Add ports for windows, behind some that libvirt takes for other devices."""
    _add(devices, "controller", type="pci", index="0", model="pcie-root")
    for _ in range(OTHER_PORTS):
        _add(devices, "controller", type="pci", model="pcie-root-port")
    for alias in aliases:
        port = _add(devices, "controller", type="pci", model="pcie-root-port")
        _add(port, "alias", name=alias)


def _override(devices: dict[str, Properties]) -> ET.Element:
    """Return the properties that the devices with these aliases get from us."""
    override = ET.Element(f"{{{QEMU}}}override")
    for alias, properties in devices.items():
        device = _add(override, f"{{{QEMU}}}device", alias=alias)
        frontend = _add(device, f"{{{QEMU}}}frontend")
        for name, value in properties.items():
            kind = "bool" if isinstance(value, bool) else "unsigned"
            words = {"name": name, "type": kind, "value": str(value).lower()}
            _add(frontend, f"{{{QEMU}}}property", **words)
    return override


def _alias(name: str) -> str:
    """Return the alias that `name` gives: it can have no '.', and stays unique."""
    return "ua-vhostpci-" + name.replace("_", "__").replace(".", "_-")


def _add(parent: ET.Element, tag: str, **attributes: str) -> ET.Element:
    return ET.SubElement(parent, tag, attributes)
