# SPDX-License-Identifier: Apache-2.0
"""Make the XML with which libvirt, 8.2 or later, runs a domain as a master or a slave.

The domain is complete and valid: it has what vhostpci needs, and no disk.  A user
defines it as it is and adds to it, or copies the elements into an existing domain.

Where libvirt has no element for a property of QEMU's, `<qemu:override>` (which libvirt
8.2 brought) sets it on a device, which it names by its alias.
"""

from pathlib import Path
from xml.etree import ElementTree as ET

from vhostpci_shared.virtio import Feature

from ..config.confined_layout import Layout, Machine
from ..config.device import MIB, DeviceConfig, Mode, window_size
from ..errors import HostError
from ..hotplug.ids import object_id
from ..hotplug.shmem_xml import add_element, shmem
from ..interfaces import Plug
from . import qemu_args
from .qemu_version import IN_ORDER, Version

QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("qemu", QEMU)

Properties = dict[str, bool | int]
"""Values of a device's properties in QEMU, by the properties' names."""

GIB = 2**30
OTHER_PORTS = 4
"""Root ports before those for windows: libvirt fills the first with other devices."""
STATIC_SLOT = 0x10
"""A slot of bus 0 that libvirt assigns to no device."""


def master(
    config: DeviceConfig,
    qemu: Version,
    ram: int | None = None,
    *,
    kind: str = "kvm",
    vectors: int | None = None,
    packed: bool = False,
    machine: Machine = Machine.Q35,
) -> ET.Element:
    """Return the domain of this device's master.

    Args:
        config: the device's.
        qemu: the version of the QEMU that runs the domain.
        ram: the size of the master's memory in attach mode.
        kind: the domain's type, `kvm` or `qemu`.
        vectors: MSI-X vectors of the card, where libvirt's number is not right.
        packed: whether the card offers packed rings to its driver.
        machine: QEMU's machine, of a confined master.

    Raises:
        HostError: `ram` is needed, or libvirt cannot make this master.
    """
    arena = config.mode is Mode.ARENA
    size = qemu_args.whole_memory(config, ram)
    domain = _domain(f"{config.name}-master", kind, size, machine)
    if config.confined is not None:
        its = _confined_layout(config, ram, machine)
        card = _plain_card(config, qemu, vectors, packed=packed)
        _confine(domain, its, card)
        return domain
    domain.append(_shared_memory())
    _add_acpi(domain)
    devices = add_element(domain, "devices")
    alias = _alias(config.name)
    devices.append(_interface(config, alias))
    if arena:
        domain.append(_arena(config))
    properties = _card(config, qemu, vectors, packed=packed)
    domain.append(_override({alias: properties}))
    return domain


def _add_acpi(domain: ET.Element) -> None:
    # Without the element libvirt turns ACPI off.
    add_element(add_element(domain, "features"), "acpi")


def _confined_layout(config: DeviceConfig, ram: int | None, machine: Machine) -> Layout:
    """Return where the memory of a confined master lies.

    Raises:
        HostError: libvirt cannot make this master.
    """
    if config.mode is Mode.ARENA:
        raise HostError(
            f"{config.name}: libvirt chooses the file of shared memory itself where "
            "other memory is private: a confined master of libvirt's is in attach mode "
            "(--mode attach --memory 4G)",
            code="H153",
        )
    return qemu_args.confined_layout(config, ram, machine)


def _confine(domain: ET.Element, its: Layout, card: qemu_args.Args) -> None:
    """Make one part of a domain's memory shared, and keep other devices from it."""
    cpu: dict[str, str] = {}
    if its.machine is Machine.Q35:
        _add_acpi(domain)
    else:
        # libvirt takes <acpi> on a virt with EFI only.  QEMU's usual processor has 32
        # bits there, and libvirt would choose that one.
        cpu["mode"] = "host-passthrough" if domain.get("type") == "kvm" else "maximum"
    # Without <memoryBacking> libvirt makes each cell without memAccess of
    # memory-backend-ram, which QEMU shows to no back-end; a source would be that of all
    # cells, and QEMU would show all of them.
    numa = add_element(add_element(domain, "cpu", **cpu), "numa")
    for number, part in enumerate(its.parts):
        words = {"id": str(number), "memory": str(part.size // MIB), "unit": "MiB"}
        words |= {"cpus": "0"} if number == 0 else {}
        add_element(numa, "cell", **words, **SHARED_CELL[part.is_shared])
    devices = add_element(domain, "devices")
    # libvirt adds both if they are not named.  What the USB controller is told would
    # lie in the shared region.
    add_element(devices, "controller", type="usb", model="none")
    add_element(devices, "memballoon", model="none")
    options = ",".join(qemu_args.chipset(its))
    domain.append(_commandline([*([("-machine", options)] if options else []), *card]))


def _plain_card(
    config: DeviceConfig, qemu: Version, vectors: int | None, *, packed: bool
) -> qemu_args.Args:
    """Return a confined master's card as arguments, in a slot of libvirt's bus 0."""
    # libvirt 11 takes no <interface> of vhost-user if a cell of the memory is private.
    *others, (option, card) = qemu_args.card(config, qemu, vectors, packed=packed)
    return [*others, (option, f"{card},addr={STATIC_SLOT:#x}")]


SHARED_CELL = {True: {"memAccess": "shared"}, False: {}}


def _card(
    config: DeviceConfig, qemu: Version, vectors: int | None, *, packed: bool
) -> Properties:
    """Return the properties of the master's card that a domain overrides."""
    properties: Properties = dict(qemu_args.card_properties(config))
    # libvirt has no attribute for it.
    if qemu >= IN_ORDER and qemu_args.offers(config, Feature.F_IN_ORDER):
        properties["in_order"] = True
    # It has an attribute only from libvirt 6.3 on, and no other part needs that.
    if packed:
        properties["packed"] = True
    if vectors is not None:
        properties["vectors"] = vectors
    return properties


def slave(
    config: DeviceConfig,
    ram: int | None = None,
    *,
    kind: str = "kvm",
    windows: int = 1,
) -> ET.Element:
    """Return the domain of this device's slave.

    The domain has the ivshmem function from its start.  If the daemon plugs the
    windows, as it always does in attach mode, it has root ports for them instead.

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
    # libvirt demands the I/O APIC in QEMU for an IOMMU with interrupt remapping.
    add_element(features, "ioapic", driver="qemu")
    devices = add_element(domain, "devices")
    domain.append(_commandline(qemu_args.PLACE_FOR_WINDOWS))
    if config.plugged or config.mode is Mode.ATTACH:
        domain.append(_override(_add_ports(devices, config, ram, windows)))
    else:
        devices.append(_static(config))
    # The guest's vfio-pci needs the IOMMU: it takes no function without an IOMMU group,
    # and without vfio-pci the agent gets no interrupts unless it has its own module.
    add_element(add_element(devices, "iommu", model="intel"), "driver", intremap="on")
    return domain


def set_emulator(domain: ET.Element, program: Path) -> None:
    """Have libvirt run this QEMU instead of its default one."""
    devices = domain.find("devices")
    assert devices is not None, "a domain of ours has <devices>"
    emulator = ET.Element("emulator")
    emulator.text = str(program)
    devices.insert(0, emulator)


def hint(config: DeviceConfig, role: str, *, tcg: bool) -> str:
    """Return the comment that goes to stderr beside this device's domain."""
    if role == "slave":
        also, more = "<features>", SLAVE_HINT
        more += f"\n{qemu_args.TCG_SLAVE_HINT.rstrip()}" if tcg else ""
    elif config.confined is not None:
        also, more = "<memory> and <cpu>", CONFINED_HINT
    elif config.mode is Mode.ARENA:
        also, more = "<memory> and <memoryBacking>", ARENA_HINT
    else:
        also, more = "<memoryBacking>", ATTACH_HINT
    return f"{HINT} {also}.\n{more}"


HINT = """\
# `virsh define` takes this as it is; it has no disk yet.  To a domain that is there
# (virsh edit) add all that is in <devices> and in qemu:..., and"""
SLAVE_HINT = """\
# For interrupts the guest's kernel needs intel_iommu=on; without, the agent polls."""
ARENA_HINT = """\
# The arena is all of its RAM: no <numa>, and nothing else in <memoryBacking>."""
CONFINED_HINT = """\
# libvirt makes the shared cell a file in memory_backing_dir (/etc/libvirt/qemu.conf),
# which must be on tmpfs: memory_backing_dir = "/dev/shm/libvirt".
# Take <memoryBacking> out, the card's <interface> (the card is in qemu:commandline, as
# libvirt 11 wants all memory shared for one), and USB and SATA controllers; processors
# are in cell 0."""
ATTACH_HINT = """\
# Where the slave is a VM, each file of the RAM must have a power of two of bytes."""


def _domain(
    name: str, kind: str, memory: int, machine: Machine = Machine.Q35
) -> ET.Element:
    domain = ET.Element("domain", type=kind)
    add_element(domain, "name").text = name
    add_element(domain, "memory", unit="MiB").text = str(memory // MIB)
    add_element(domain, "vcpu").text = "1"
    arch = ARCHITECTURES[machine]
    add_element(
        add_element(domain, "os"), "type", arch=arch, machine=str(machine)
    ).text = "hvm"
    return domain


ARCHITECTURES = {Machine.Q35: "x86_64", Machine.VIRT: "aarch64"}
"""libvirt's name for a machine's processor."""


def _shared_memory() -> ET.Element:
    """Return the element that makes the master's RAM a file that others can map.

    libvirt 11 takes no vhost-user card without it, and does not see that the arena is
    such a file.
    """
    backing = ET.Element("memoryBacking")
    add_element(backing, "source", type="memfd")
    add_element(backing, "access", mode="shared")
    return backing


def _arena(config: DeviceConfig) -> ET.Element:
    """Return the element that makes the arena the master's RAM."""
    # A plain command line, since libvirt chooses the files behind <memoryBacking>
    # itself.  libvirt's own memory object, a memfd, stays there unused, and takes no
    # memory, since nothing touches it.
    return _commandline(qemu_args.arena(config))


def _commandline(args: qemu_args.Args) -> ET.Element:
    """Return the element with which libvirt gives QEMU these arguments as they are."""
    commandline = ET.Element(f"{{{QEMU}}}commandline")
    for word in qemu_args.flat(args):
        add_element(commandline, f"{{{QEMU}}}arg", value=word)
    return commandline


def _interface(config: DeviceConfig, alias: str) -> ET.Element:
    """Return the network card."""
    card = ET.Element("interface", type="vhostuser")
    # libvirt chooses a random MAC address otherwise, and `qemu-args` would differ.
    add_element(card, "mac", address=qemu_args.mac(config.name))
    # The mode is QEMU's part: a client where the daemon listens.
    listens = config.connect is not None
    mode, path = "server" if listens else "client", str(config.vhost_user)
    source = add_element(card, "source", type="unix", path=path, mode=mode)
    if not listens:
        # Without it the carrier stays down after a restart of the daemon.
        add_element(source, "reconnect", enabled="yes", timeout="1")
    add_element(card, "model", type="virtio")
    if config.queue_pairs > 1:
        # From this libvirt derives mq=on and the number of MSI-X vectors.
        add_element(card, "driver", queues=str(config.queue_pairs))
    add_element(card, "alias", name=alias)
    return card


def _static(config: DeviceConfig) -> ET.Element:
    # libvirt would put an ivshmem function without an address behind a bridge to
    # conventional PCI, where it shares one IOMMU group with all other devices.
    size = window_size(config.shared)
    plug = Plug(window=0, socket=config.ivshmem, vectors=config.vectors, size=size)
    return shmem(object_id(config.name, 0), plug, bus=0, slot=STATIC_SLOT)


def _add_ports(
    devices: ET.Element, config: DeviceConfig, ram: int | None, windows: int
) -> dict[str, Properties]:
    """Add a root port for each window; return the properties to override in them."""
    add_element(devices, "controller", type="pci", index="0", model="pcie-root")
    for _ in range(OTHER_PORTS):
        add_element(devices, "controller", type="pci", model="pcie-root-port")
    size, count = qemu_args.room(config, ram, windows)
    # `_alias` writes "_" only as "__" or "_-", so no device has an alias that is
    # another's with "_port0" behind it.
    aliases = [f"{_alias(config.name)}_port{i}" for i in range(count)]
    for alias in aliases:
        port = add_element(devices, "controller", type="pci", model="pcie-root-port")
        add_element(port, "alias", name=alias)
    return {alias: {"pref64-reserve": size} for alias in aliases}


def _override(devices: dict[str, Properties]) -> ET.Element:
    """Return the element that sets QEMU's properties of devices, by their aliases."""
    override = ET.Element(f"{{{QEMU}}}override")
    for alias, properties in devices.items():
        device = add_element(override, f"{{{QEMU}}}device", alias=alias)
        frontend = add_element(device, f"{{{QEMU}}}frontend")
        for name, value in properties.items():
            kind = _KINDS[type(value)]
            words = {"name": name, "type": kind, "value": str(value).lower()}
            add_element(frontend, f"{{{QEMU}}}property", **words)
    return override


_KINDS = {bool: "bool", int: "unsigned"}
"""libvirt's name for a property's type."""


def _alias(name: str) -> str:
    """Return the alias of the device `name`; no other name has the same."""
    # libvirt silently ignores an alias that does not begin with "ua-" or has another
    # character than letters, digits, "-" and "_".  "_" is doubled, so "_-" can only
    # come from a ".".
    return "ua-vhostpci-" + name.replace("_", "__").replace(".", "_-")
