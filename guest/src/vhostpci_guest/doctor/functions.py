# SPDX-License-Identifier: Apache-2.0
"""Checks of the PCI functions: what they are, and how they can be bound."""

from collections.abc import Iterator

from vhostpci_shared import metadata as md
from vhostpci_shared.findings import CannotLook, Seen, error, ok, skipped, warn
from vhostpci_shared.wire import ProtocolError

from .slave import PCI, Described, Peek, Slave, each_device, has_interrupts, possible

_DEVICES = "vhostpci-guest devices"
_VIOMMU = "-machine q35,kernel-irqchip=split -device intel-iommu,intremap=on"
_NARROW = "-global x86_64-cpu.phys-bits=39"
_UNSET = 0xFFFF_FFFF
"""What IVPosition reads like where no server has given the device a number."""


def present(slave: Slave) -> Iterator[Seen]:
    """Look whether there is a device at all, and of which revision."""
    looked_at = f"{PCI}, 1af4:1110"
    if not slave.devices:
        if any("/" in link["device"] for link in slave.links):
            yield ok(looked_at, "none: this slave is a process, which needs none")
            return
        if slave.forbidden:
            raise CannotLook(f"there is none, and {slave.forbidden}")
        yield error(
            looked_at,
            "there is no ivshmem device",
            means="this VM is no slave, or its windows are not plugged yet",
            repair="start it with what vhostpci-host qemu-args NAME --role slave "
            "prints; for a plugged device see vhostpci-host doctor",
        )
        return
    for device in slave.devices:
        address = device["address"]
        path = f"{PCI}/{address}/revision"
        revision = (slave.machine.text_if_there(path) or "0x01").strip()
        if int(revision, 16) >= 1:
            yield ok(path, f"1af4:1110, revision {int(revision, 16)}", about=address)
            continue
        yield error(
            path,
            f"revision {revision}",
            about=address,
            means="it is the ivshmem of a QEMU before 2.6, with another protocol",
            repair="ivshmem-doorbell of QEMU 7.2 or later",
        )


@each_device
def driver(slave: Slave, device: Described) -> Iterator[Seen]:
    """Look whether another driver or process has the device."""
    taken = device["taken"]
    looked_at = f"{PCI}/{device['address']}/driver"
    ours = device["agent"] is not None or device["window_of"]
    # An agent that did not answer us is told of by the check of the agents.
    if taken is None or ours or "vhostpci" in taken.partition(" through ")[0]:
        yield ok(looked_at, device["driver"] or "none")
        return
    yield error(
        looked_at,
        taken,
        means="the agent leaves a device alone that another driver or process uses",
        repair=f"echo {device['address']} > {looked_at}/unbind, if it is yours to take",
    )


@each_device
def place(slave: Slave, device: Described) -> Iterator[Seen]:
    """Look whether Linux has given BAR 2 an address."""
    looked_at = f"{PCI}/{device['address']}/resource"
    if device["window"]:
        yield ok(looked_at, f"BAR 2 of {device['window'] >> 10} KiB")
        return
    cpu = slave.machine.text_if_there("/proc/cpuinfo") or ""
    amd = "AuthenticAMD" in cpu and "40 bits physical" in cpu
    yield error(
        looked_at,
        "BAR 2 has no address",
        means="the root port has no room for it"
        + (": firmware has put it among addresses that AMD reserves" if amd else ""),
        repair=f"start this VM's QEMU with {_NARROW}"
        if amd
        else "a root port with pref64-reserve= of twice the window's size, as "
        "vhostpci-host qemu-args NAME --role slave prints it",
    )


@each_device
def binding(slave: Slave, device: Described) -> Iterator[Seen]:
    """Look whether there is a way to bind the device, and the agent took the best."""
    link, ways = slave.link(device), possible(device)
    if link is not None and not link["interrupts"] and has_interrupts(device):
        yield warn(
            _DEVICES,
            f"the agent polls ({link['binding']}), and {ways[0]} is possible now",
            means="it started before the kernel module or the vIOMMU was there",
            repair="systemctl restart vhostpci-guest",
        )
    elif ways or (link is not None and link["interrupts"]):
        yield ok(_DEVICES, link["binding"] if link else f"possible: {', '.join(ways)}")
    elif slave.machine.text_if_there(_LOCKDOWN) and _locked_down(slave):
        yield skipped("no binding is possible under lockdown")
    else:
        ways_not = device["bindings"].items()
        yield error(
            _DEVICES,
            "; ".join(f"not {name}: {one['why_not']}" for name, one in ways_not),
            means="the agent cannot use the device",
            repair="one of the lines of vhostpci-guest devices",
        )


_LOCKDOWN = "/sys/kernel/security/lockdown"


def _locked_down(slave: Slave) -> bool:
    # The mode in force is the one in brackets.
    return "[none]" not in (slave.machine.text_if_there(_LOCKDOWN) or "[none]")


def lockdown(slave: Slave) -> Iterator[Seen]:
    """Look whether kernel lockdown leaves a way to bind the devices."""
    if not _locked_down(slave):
        yield ok(_LOCKDOWN, "none")
        return
    mode = slave.machine.text(_LOCKDOWN).partition("[")[2].partition("]")[0]
    stuck = [one for one in slave.devices if not possible(one)]
    if not stuck:
        yield ok(_LOCKDOWN, f"{mode}; kmod or vfio is possible")
    for device in stuck:
        yield error(
            _LOCKDOWN,
            mode,
            about=device["address"],
            means="uio and sysfs are forbidden, and neither kmod nor vfio is possible: "
            f"{device['bindings']['kmod']['why_not']}",
            repair="mokutil --import /var/lib/dkms/mok.pub, and boot; or a vIOMMU "
            f"({_VIOMMU})",
        )


@each_device
def iommu(slave: Slave, device: Described) -> Iterator[Seen]:
    """Look whether there is an IOMMU group, if interrupts need it."""
    looked_at = f"{PCI}/{device['address']}/iommu_group"
    if slave.machine.exists(looked_at):
        yield ok(looked_at, "it has a group")
        return
    link = slave.link(device)
    if has_interrupts(device) or (link is not None and link["interrupts"]):
        yield ok(looked_at, "it has none, and needs none with kmod")
        return
    if not possible(device):
        raise CannotLook("no binding is possible at all")
    line = (slave.machine.text_if_there("/proc/cmdline") or "").split()
    tables = slave.machine.names_if_there("/sys/firmware/acpi/tables")
    if "DMAR" in tables and "intel_iommu=on" not in line:
        found = "the VM has a vIOMMU, and /proc/cmdline is without intel_iommu=on"
        repair = "intel_iommu=on in GRUB_CMDLINE_LINUX of /etc/default/grub; "
        repair += "update-grub, and boot"
    else:
        found = "the VM has no vIOMMU"
        repair = f"start its QEMU with {_VIOMMU}, and its kernel with intel_iommu=on; "
        repair += "or install uio_vhostpci (kmod/README.md)"
    yield warn(
        looked_at,
        found,
        means="vfio-pci is not possible: the agent polls",
        repair=repair,
    )


@each_device
def vectors(slave: Slave, device: Described) -> Iterator[Seen]:
    """Look whether the device has enough MSI-X vectors."""
    found = device["vectors"]
    looked_at = f"{PCI}/{device['address']}/config"
    if found is None:
        raise CannotLook("only root may read the MSI-X capability")
    need = _needed(slave, device)
    if found >= max(need, 1):
        yield ok(looked_at, f"{found}, and {need or 'at least 1'} needed")
        return
    what = "none" if found == 0 else f"{found}, and {need} are needed"
    yield error(
        looked_at,
        what,
        means="it is an ivshmem-plain, which has no doorbells"
        if found == 0
        else "the agent cannot hear the kicks of all rings, and serves none",
        repair=f"-device ivshmem-doorbell,vectors={need or 3} in this VM's QEMU",
    )


def _needed(slave: Slave, device: Described) -> int:
    """Return how many vectors the daemon wants; 0 if it cannot be known."""
    entry = _entry(slave, device)
    return entry.vectors if entry is not None else 0


def _peek(slave: Slave, device: Described) -> Peek | None:
    """Return the metadata of a device that no agent serves, if it can be read."""
    if device not in slave.unserved:
        return None
    try:
        return slave.peek(device["address"])
    except OSError:
        return None


def _entry(slave: Slave, device: Described) -> md.Device | None:
    seen = _peek(slave, device)
    if seen is None:
        return None
    try:
        md.Header.parse(seen.before[: md.Header.layout.size])
        end = md.DEVICE + md.Device.layout.size
        return md.Device.parse(seen.before[md.DEVICE : end])
    except ProtocolError:
        return None


@each_device
def position(slave: Slave, device: Described) -> Iterator[Seen]:
    """Look which window the device shows, by its IVPosition."""
    del slave
    found, looked_at = device["iv_position"], _DEVICES
    if found is None:
        raise CannotLook("its register is not for us: run as root")
    if found != _UNSET and (found == md.SLAVE_ID or found >= md.FIRST_WINDOW):
        yield ok(looked_at, f"IVPosition {found}")
        return
    yield error(
        looked_at,
        f"IVPosition {found:#x}",
        means="its server is no vhostpci-host, or is not connected",
        repair="its chardev's path is the device's NAME.ivshmem",
    )


@each_device
def metadata(slave: Slave, device: Described) -> Iterator[Seen]:
    """Look whether the window has metadata of our version."""
    link, looked_at = slave.link(device), f"the end of BAR 2 of {device['address']}"
    if device["window_of"] or (device["iv_position"] or 0) >= md.FIRST_WINDOW:
        raise CannotLook("it is a window, which has none")
    if link is not None:
        text = f"generation {link['generation']}"
        yield ok("vhostpci-guest status", text)
        return
    seen = slave.peek(device["address"])
    if seen is None:
        raise CannotLook("only an agent may read it")
    try:
        header = md.Header.parse(seen.after[: md.Header.layout.size])
    except ProtocolError as why:
        # The metadata of a later version begins with the same word.
        ours = seen.after.startswith(md.MAGIC)
        yield _other_version(looked_at, why) if ours else _not_ours(looked_at, why)
        return
    if header.generation % 2:
        yield error(
            looked_at,
            f"generation {header.generation} is odd",
            means="the daemon was killed while it wrote, or has not begun",
            repair="vhostpci-host status on the hypervisor; start the daemon again",
        )
        return
    yield ok(looked_at, f"version {header.version}, generation {header.generation}")


def _other_version(looked_at: str, why: ProtocolError) -> Seen:
    return error(
        looked_at,
        str(why),
        means="the agent cannot serve this daemon",
        repair="update the older one of vhostpci-host and vhostpci-guest, and start it "
        "again",
    )


def _not_ours(looked_at: str, why: ProtocolError) -> Seen:
    return warn(
        looked_at,
        str(why),
        means="the agent leaves this device alone",
        repair="nothing, if it is not of vhostpci; else start its daemon",
    )


def explained(slave: Slave, device: Described) -> bool:
    """Whether another check says why no agent serves the device."""
    if not device["window"] or device["taken"] or not possible(device):
        return True
    if device["vectors"] == 0:
        return True
    seen = _peek(slave, device)
    if seen is None:
        return False
    entry = _entry(slave, device)
    few = device["vectors"] is not None and entry is not None
    return entry is None or (few and device["vectors"] < entry.vectors) or odd(seen)


def odd(seen: Peek) -> bool:
    """Whether the daemon has not written the metadata to its end."""
    word = seen.after[md.GENERATION_OFFSET : md.GENERATION_OFFSET + 8]
    return bool(int.from_bytes(word, "little") % 2)


def beats(seen: Peek) -> bool:
    """Whether the daemon raises its heartbeat."""
    place = slice(md.HEARTBEAT_OFFSET, md.HEARTBEAT_OFFSET + 8)
    return seen.before[place] != seen.after[place]
