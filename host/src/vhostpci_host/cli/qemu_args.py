# SPDX-License-Identifier: Apache-2.0
"""Make the arguments with which a stock QEMU, 7.2 to 11.x, is a master or a slave."""

import shlex
import zlib

from vhostpci_shared.virtio import Feature

from ..config import confined
from ..config.confined_layout import Layout, Machine, layout, pool_for
from ..config.device import DeviceConfig, Mode, window_size
from ..errors import HostError
from ..hotplug import root_ports
from ..hotplug.ids import DEVICE, object_id
from .arguments import Usage
from .qemu_version import CONFINED, IN_ORDER, RECONNECT_MS, TCG_MSIX, Version

Args = list[tuple[str, str]]
"""Options with their values, in order."""


def master(
    config: DeviceConfig,
    qemu: Version,
    ram: int | None = None,
    *,
    vectors: int | None = None,
    packed: bool = False,
    machine: Machine = Machine.Q35,
) -> Args:
    """Return the arguments that make a VM the master of this device.

    Args:
        config: the device's.
        qemu: the version of the QEMU that runs the VM.
        ram: the size of the master's memory in attach mode.
        vectors: MSI-X vectors of the card, where the usual number is not right.
        packed: whether the card offers packed rings to its driver.
        machine: QEMU's machine, of a confined master.

    Raises:
        HostError: `ram` is needed, or the master cannot be confined.
    """
    return [
        *_memory(config, qemu, ram, machine),
        *card(config, qemu, vectors, packed=packed),
    ]


def card(
    config: DeviceConfig, qemu: Version, vectors: int | None, *, packed: bool
) -> Args:
    """Return the arguments for the master's card; the last one is its `-device`."""
    name = object_id(config.name)
    return [
        (
            "-chardev",
            f"socket,id={name},path={_escape(config.vhost_user)},"
            f"{_reconnect(qemu) if config.connect is None else LISTEN}",
        ),
        ("-netdev", f"vhost-user,id={name}-net,chardev={name}{_queues(config)}"),
        ("-device", _card(config, qemu, vectors, packed=packed)),
    ]


def _memory(
    config: DeviceConfig, qemu: Version, ram: int | None, machine: Machine
) -> Args:
    """Return the arguments for the master's memory."""
    size, attached = whole_memory(config, ram), config.mode is Mode.ATTACH
    # QEMU refuses a machine whose -m differs from its memory backends' sizes.
    whole = ("-m", f"{size >> 20}M")
    if config.confined is not None:
        if qemu < CONFINED:
            raise HostError(
                f"{config.name}: a confined master is known to work from QEMU "
                f"{CONFINED} on, and this one is {qemu}: name a later one "
                "(--qemu PATH)",
                code="H146",
            )
        return [whole, *confined_memory(config, confined_layout(config, ram, machine))]
    return [whole, *(_shared_memory(config, size) if attached else arena(config))]


def confined_layout(config: DeviceConfig, ram: int | None, machine: Machine) -> Layout:
    """Return where the memory of a confined master lies.

    Raises:
        HostError: the device is not confined, or its memory is not known.
        Usage: there is no layout for its sizes.
    """
    if config.confined is None:
        raise HostError(
            f"{config.name} is not confined, and its master's kernel needs no words: "
            "give --confined to describe one that is",
            code="H147",
        )
    size, attached = whole_memory(config, ram), config.mode is Mode.ATTACH
    try:
        return layout(size, config.confined, machine, attached=attached)
    except HostError as error:
        raise Usage(f"{config.name}: {error}", code=error.code) from error


def confined_memory(config: DeviceConfig, its: Layout) -> Args:
    """Return the arguments that make only one part of a master's memory shared."""
    machine = ",".join([its.machine, *chipset(its)])
    objects, nodes = [], []
    for number, part in enumerate(its.parts):
        name = f"{object_id(config.name)}-{part.name}"
        # QEMU shows a back-end each memory that has a descriptor, also a memfd with
        # share=off, and leaves out what has none (vhost_user_mem_section_filter()).
        kind, where = _shared_kind(config) if part.is_shared else (PRIVATE, "")
        size = f"size={part.size >> 20}M"
        objects.append(("-object", f"{kind},id={name},{size}{where}"))
        # Nodes are how QEMU makes a machine's memory of several pieces.
        nodes.append(("-numa", f"node,nodeid={number},memdev={name}"))
    return [("-machine", machine), *objects, *nodes]


def chipset(its: Layout) -> list[str]:
    """Return the options of a confined master's machine."""
    if its.machine is not Machine.Q35:
        return []
    # sata=off: a q35 has a controller for disks, whose commands the slave could write.
    return [f"max-ram-below-4g={its.below_4g >> 20}M", "sata=off"]


PRIVATE = "memory-backend-ram"


def _shared_kind(config: DeviceConfig) -> tuple[str, str]:
    """Return the memory backend of the shared region, and its last options."""
    if config.mode is Mode.ATTACH:
        return "memory-backend-memfd", ",share=on"
    return "memory-backend-file", f",mem-path={_escape(config.arena)},share=on"


LISTEN = "server=on,wait=off"
"""What has QEMU listen.  The card waits for its first back-end all the same, but not
the rest of a VM in which it is plugged later."""


def _reconnect(qemu: Version) -> str:
    """Return the option that has QEMU connect again after a second."""
    # It brings the card's carrier back after a restart of the daemon; without, it stays
    # down until the VM restarts.  QEMU 9.1 knows only the one, QEMU 11 only the other.
    return "reconnect-ms=1000" if qemu >= RECONNECT_MS else "reconnect=1"


def needs_intx(qemu: Version, *, tcg: bool) -> bool:
    """Whether a master's card with MSI-X would crash this QEMU."""
    # Without KVM, QEMU before 8.0 takes the MSI-X of a vhost-user card for an irqfd of
    # KVM's, and dereferences NULL when the guest's driver starts.
    return tcg and qemu < TCG_MSIX


def arena(config: DeviceConfig) -> Args:
    """Return the arguments that make the arena a VM's memory."""
    # share=on: without it QEMU maps a private copy, sends the daemon the file all the
    # same, and no packet ever arrives.
    where = f"mem-path={_escape(config.arena)},share=on"
    return _backend(config, "memory-backend-file", config.memory, where)


def _shared_memory(config: DeviceConfig, size: int) -> Args:
    """Return the arguments for a memory that the daemon can show to the slave."""
    # A memfd is one example.  Ordinary RAM has no file that QEMU could send us.
    return _backend(config, "memory-backend-memfd", size, "share=on")


def _backend(config: DeviceConfig, kind: str, size: int, where: str) -> Args:
    name = f"{object_id(config.name)}-memory"
    return [
        ("-machine", f"memory-backend={name}"),
        ("-object", f"{kind},id={name},size={size >> 20}M,{where}"),
    ]


def whole_memory(config: DeviceConfig, ram: int | None) -> int:
    """Return the size of the master's whole memory.

    Args:
        config: the device's.
        ram: the size of the master's memory in attach mode.

    Raises:
        HostError: `ram` is needed.
    """
    return known(config, ram) if config.mode is Mode.ATTACH else config.memory


def known(config: DeviceConfig, ram: int | None) -> int:
    """Return the size of the master's memory in attach mode.

    Raises:
        HostError: `ram` is needed.
    """
    if ram is None:
        raise HostError(
            f"{config.name}: in attach mode the master has what memory it likes: give "
            "its size for an example (--mode attach --memory 4G)",
            code="H013",
        )
    return ram


def slave(config: DeviceConfig, ram: int | None = None, *, windows: int = 1) -> Args:
    """Return the arguments that make a VM the slave of this device.

    Args:
        config: the device's.  If its windows are plugged, the VM gets a root port for
            each; else it gets the ivshmem function itself.
        ram: the size of the master's memory in attach mode.
        windows: how many files the master's memory has in attach mode.

    Raises:
        HostError: `ram` is needed; or QEMU arguments cannot make the slave.
    """
    name = object_id(config.name)
    if config.slave_qmp is not None:
        # wait=off: the VM starts whether or not the daemon runs.
        qmp = f"unix:{_escape(config.slave_qmp)},server=on,wait=off"
        # Only a PCI Express machine has root ports.
        ports = [("-machine", "q35"), *_ports(config, ram, windows)]
        return [*ports, *PLACE_FOR_WINDOWS, ("-qmp", qmp)]
    if config.mode is Mode.ATTACH or config.slave_libvirt is not None:
        raise HostError(
            f"{config.name}: windows come and go with the master: a slave VM has them "
            "plugged (--slave-qmp SOCKET), one of libvirt's takes no arguments, and a "
            "slave process needs none (vhostpci-guest run --socket)",
            code="H014",
        )
    return [
        # No reconnect= here: with it QEMU connects in the background, and the ivshmem
        # function spins without end in its wait for the handshake (measured with 7.2).
        ("-chardev", f"socket,id={name},path={_escape(config.ivshmem)}"),
        (
            "-device",
            f"ivshmem-doorbell,id={name}{DEVICE},chardev={name},"
            f"vectors={config.vectors}",
        ),
        *PLACE_FOR_WINDOWS,
    ]


# The -global is a property of all processor models, so the user's own -cpu stays.
# `-cpu host` goes on to have as many address bits as the processor.
PLACE_FOR_WINDOWS: Args = [("-global", root_ports.NARROW_CPU)]


def _ports(config: DeviceConfig, ram: int | None, windows: int) -> Args:
    """Return a root port for each window."""
    size, count = room(config, ram, windows)
    # QEMU refuses two ports with the same chassis and slot.  They follow from the
    # device's name, so that several devices' arguments fit into one command line: a
    # chassis has 8 bits, a slot 13.
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
    """Return how many bytes each root port must reserve, and how many ports to make.

    Raises:
        HostError: `ram` is needed, or no window of a VM can have that size.
    """
    # A port reserves twice its window's size: a BAR begins at a multiple of its size,
    # but the range that SeaBIOS gives a port below 4 GiB begins at any megabyte.
    if config.mode is Mode.ARENA:
        return 2 * window_size(config.shared), 1
    # Of a confined master the window is the shared region, which is a power of two.
    size = config.shared or known(config, ram)
    _check_power_of_two(config, size)
    # One port more than files: in attach mode window 0 has the metadata alone.
    return 2 * size, windows + 1


_SLAVE_HINT = """\
# For interrupts through vfio-pci the slave needs a vIOMMU as well; add
#   -machine q35,kernel-irqchip=split -device intel-iommu,intremap=on
# and intel_iommu=on to its kernel's command line.  Without, the agent polls.
"""
# The kernel waits some ticks for its timer's interrupts, and panics if none has come.
# The ticks of an emulated machine go by while its process waits for a processor.
TCG_SLAVE_HINT = """\
# An emulated slave with a vIOMMU may panic at boot on a loaded machine ("timer doesn't
# work through Interrupt-remapped IO-APIC"): add no_timer_check to its kernel's
# command line as well.
"""
_MSIX_HINT = """\
# This QEMU without KVM crashes when the card uses MSI-X: add --tcg there.
"""


# What Linux calls a card follows from the slot that QEMU gives it; the MAC is ours.
_CARD_HINT = """\
# The card's MAC address is {mac}.  In the master, this shows the card's name:
#   ip -br link | grep {mac}
"""


_CONFINED_HINT = """\
# Confined (experimental; docs/confined.md has the conditions).  The master's kernel
# needs CONFIG_DMA_CMA and these words, which --kernel-args prints alone:
#   {words}
# It has no crashkernel=, and at most {processors} processors.  Add no device to it but
# root ports, and virtio devices without iommu_platform that are not of vhost-user.
"""


RING_ENTRIES, MOST_RING_ENTRIES = 256, 1024
"""Of QEMU's card, unless the user adds rx_queue_size or tx_queue_size to it; at most.
"""
_POOL_HINT = """\
# A bounce pool of {pool}M may be too small for rings of {entries} entries,
# {whose}: when it is full, the master's
# kernel says "swiotlb buffer is full" and drops packets.  {enough}M are enough
# (--confined {enough}M).
"""
_USUAL_CARD = "as this card has"
_LARGE_RINGS = "if you give it such (rx_queue_size, tx_queue_size)"
_INITRD_HINT = """\
# A larger initrd than {bios} MiB, {efi} comes to lie where the
# slave can read it, and with EFI GRUB 2.06 (Debian 12's) puts Linux itself there:
# docs/confined.md, "Booting".
"""


def confined_hint(its: Layout) -> str:
    """Return the comment beside a confined master: what its guest needs."""
    words, processors = its.kernel_words(), its.processors
    text = _CONFINED_HINT.format(words=words, processors=processors)
    if its.machine is Machine.Q35:
        text += _initrd_hint(its)
    return text + _pool_hint(its.pool)


def _pool_hint(pool: int) -> str:
    """Return for which rings a bounce pool may be too small, if there are any."""
    for entries, whose in (
        (RING_ENTRIES, _USUAL_CARD),
        (MOST_RING_ENTRIES, _LARGE_RINGS),
    ):
        if pool < (enough := pool_for(entries)):
            sizes = {"pool": pool >> 20, "enough": enough >> 20}
            return _POOL_HINT.format(entries=entries, whose=whose, **sizes)
    return ""


def _initrd_hint(its: Layout) -> str:
    bios, efi = (limit // confined.MIB for limit in its.initrd_limits())
    with_efi = f"with EFI than {efi} MiB," if efi else "and any with EFI,"
    return _INITRD_HINT.format(bios=bios, efi=with_efi)


def hint(config: DeviceConfig, role: str, qemu: Version, *, tcg: bool) -> str:
    """Return the comments that go to stderr beside a VM's arguments."""
    if role == "slave":
        return _SLAVE_HINT + (TCG_SLAVE_HINT if tcg else "")
    crash = "" if tcg or not needs_intx(qemu, tcg=True) else _MSIX_HINT
    return crash + _CARD_HINT.format(mac=mac(config.name))


def _check_power_of_two(config: DeviceConfig, size: int) -> None:
    # In attach mode the file is the BAR, and QEMU aborts on a BAR whose size is no
    # power of two.  The daemon pads an arena to such a size.
    if size & (size - 1):
        below = 1 << size.bit_length() - 1
        raise HostError(
            f"{config.name}: a slave VM cannot have a memory file of {size >> 20}M, as "
            f"its size is no power of two: give the master {below >> 20}M or "
            f"{2 * below >> 20}M (a slave process takes any)",
            code="H015",
        )


def text(args: Args) -> str:
    """Return the arguments for a shell, one option a line, quoted where needed."""
    return " \\\n".join(f"{option} {shlex.quote(value)}" for option, value in args)


def flat(args: Args) -> list[str]:
    """Return the arguments as exec() takes them."""
    return [word for pair in args for word in pair]


def mac(name: str) -> str:
    """Return a MAC address that follows from the device's name."""
    # QEMU's own default is the same in every VM, which two masters on one network
    # cannot have.  52:54:00 is the prefix that QEMU and libvirt use.
    tail = zlib.crc32(name.encode()).to_bytes(4, "big")[1:]
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in tail)


def _queues(config: DeviceConfig) -> str:
    return f",queues={config.queue_pairs}" if config.queue_pairs > 1 else ""


def offers(config: DeviceConfig, feature: Feature) -> bool:
    """Whether the option `features` lets the device offer a feature."""
    return config.features is None or feature in config.features


def _card(
    config: DeviceConfig, qemu: Version, vectors: int | None, *, packed: bool
) -> str:
    """Return the network card, as the value of `-device`."""
    card = (
        f"virtio-net-pci,netdev={object_id(config.name)}-net,mac={mac(config.name)},"
        f"{_own_properties(config)}"
    )
    if qemu >= IN_ORDER and offers(config, Feature.F_IN_ORDER):
        card += ",in_order=on"
    if packed:
        card += ",packed=on"
    if config.queue_pairs > 1:
        card += ",mq=on"
        # A vector for each ring, one for configuration changes, one for the control
        # queue.
        vectors = config.rings + 2 if vectors is None else vectors
    return card if vectors is None else f"{card},vectors={vectors}"


def _own_properties(config: DeviceConfig) -> str:
    """Return the properties of the card that no option changes."""
    properties = card_properties(config)
    return ",".join(f"{name}={'on' if on else 'off'}" for name, on in properties)


def card_properties(config: DeviceConfig) -> tuple[tuple[str, bool], ...]:
    """Return the properties of the card that no option changes."""
    # ctrl_guest_offloads=off: a guest that may turn offloads off at run time tells QEMU
    # alone (vhost-user has no message for it), and would still get packets with them.
    ordinary = (("ctrl_guest_offloads", False),)
    return ordinary if config.confined is None else confined.CARD


def _escape(value: object) -> str:
    """Return a value for one of QEMU's options, which end at a single comma."""
    return str(value).replace(",", ",,")
