# SPDX-License-Identifier: Apache-2.0
"""Checks of the slaves' QEMUs, and of what the agents in them say."""

import re
from collections.abc import Iterator

from vhostpci_shared.findings import CannotLook, Seen, error, ok, warn

from ..hotplug.root_ports import NARROW_CPU, TYPES
from ..interfaces import Json
from .command_line import CommandLine, Values, number
from .hypervisor import Hypervisor, each_device, mib, process

_VIOMMU = "-machine q35,kernel-irqchip=split -device intel-iommu,intremap=on"
_INTERRUPTS = ("kmod", "socket")
"""The bindings that have interrupts without a vIOMMU."""
_HEARD = 2.0
"""Seconds after which an agent counts as silent (device/agent_view.py)."""


def _status(device: Json) -> str:
    return f"vhostpci-host status {device['name']}"


def _our_devices(device: Json, line: CommandLine) -> list[Values]:
    """Return the ivshmem functions that a slave's command line gives to our sockets."""
    path = device["sockets"]["ivshmem"]
    names = {one.get("id") for one in line.sockets(path)}
    found = line.devices("ivshmem-doorbell")
    return [one for one in found if one.get("chardev") in names]


@each_device
def connection(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether a slave is connected."""
    del host
    if device["slave_problem"]:
        yield error(
            _status(device),
            device["slave_problem"],
            means="its vectors and doorbells lead to an earlier daemon",
            repair="restart the slave VM, or plug its device again",
        )
    elif device["slave"] is None:
        yield warn(
            _status(device),
            "no slave is connected",
            means="there is no VM behind the master's card",
            repair="start the slave; vhostpci-host qemu-args "
            f"{device['name']} --role slave prints its arguments",
        )
    else:
        yield ok(_status(device), f"pid {device['slave']['pid']} is connected")


@each_device
def vectors(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether the slave's device has enough vectors."""
    need = device["vectors"]
    said = device["agent"]["vectors"]
    found, looked_at = said, f"the agent, by {_status(device)}"
    try:
        pid, line = host.peer_line(device, "slave")
    except CannotLook:
        # Without a QEMU the agent is the slave itself, or there is none.
        if not said:
            raise
    else:
        ours = _our_devices(device, line)
        if ours:
            # QEMU, hw/misc/ivshmem.c: one vector, unless it is said otherwise.
            found = number(ours[0].get("vectors", "1")) or 0
            looked_at = f"{process(pid)}/cmdline"
    if not found:
        raise CannotLook("neither its command line nor an agent says it")
    if found >= need:
        yield ok(looked_at, f"{found}, and {need} are needed")
        return
    yield error(
        looked_at,
        f"{found}, and {need} are needed",
        means="the agent cannot hear the kicks of all rings, and serves none",
        repair=f"vectors={need} in the slave's -device ivshmem-doorbell",
    )


@each_device
def viommu(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether the slave has what interrupts through vfio-pci need."""
    pid, line = host.peer_line(device, "slave")
    looked_at, binding = f"{process(pid)}/cmdline", device["agent"]["binding"]
    if binding in _INTERRUPTS:
        yield ok(looked_at, f"the agent has interrupts without one ({binding})")
        return
    lacking = _lacking(line)
    if not lacking:
        yield ok(looked_at, "it has a vIOMMU with interrupt remapping")
        return
    yield warn(
        looked_at,
        f"its command line lacks {' and '.join(lacking)}",
        means="the agent cannot use vfio-pci; without our kernel module it polls",
        repair=f"start the slave with {_VIOMMU}, and intel_iommu=on on its kernel's "
        "command line; or install uio_vhostpci in it (kmod/README.md)",
    )


def _lacking(line: CommandLine) -> list[str]:
    devices = list(line.devices("intel-iommu", "amd-iommu", "virtio-iommu-pci"))
    if not devices:
        return ["-device intel-iommu"]
    lacking = []
    first = devices[0]
    if first.get("driver") == "intel-iommu" and first.get("intremap", "auto") == "off":
        lacking.append("intremap=on")
    machines = [*line.all("machine", "M"), *line.all("accel")]
    irqchips = [
        one[key]
        for one in machines
        for key in ("kernel-irqchip", "kernel_irqchip")
        if key in one
    ]
    # QEMU: with the whole interrupt controller in the kernel nothing is remapped.
    if irqchips[-1:] not in (["split"], ["off"]):
        lacking.append("kernel-irqchip=split")
    return lacking


@each_device
def address_bits(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether the slave's firmware can place BAR 2 where it works."""
    pid, line = host.peer_line(device, "slave")
    looked_at = f"{process(pid)}/cmdline"
    bits, where = _bits(host, line)
    sizes = [one["size"] for one in device["windows"]]
    largest = max([device["memory"]["window"], *sizes])
    if largest > 1 << bits - 1:
        yield error(
            looked_at,
            f"BAR 2 of {mib(largest)}, and {bits} address bits ({where})",
            means="the firmware finds no place for it",
            repair="a processor model with more address bits: -cpu host, or "
            "-global x86_64-cpu.phys-bits=...",
        )
    elif device["plugging"] is not None and bits >= 40 and _amd(host, line):
        yield error(
            looked_at,
            f"{bits} address bits of an AMD processor ({where})",
            means="firmware puts windows at the top, among addresses that AMD "
            "reserves, and Linux gives none to a device that is plugged there",
            repair=f"start the slave with -global {NARROW_CPU}; with -cpu host add "
            "host-phys-bits-limit=39 to that",
        )
    else:
        yield ok(looked_at, f"{bits} ({where}), BAR 2 of {mib(largest)}")


def _bits(host: Hypervisor, line: CommandLine) -> tuple[int, str]:
    """Return the address bits of a guest, and how we know."""
    name = NARROW_CPU.partition("=")[0]
    cpu = next(iter(line.all("cpu")), {})
    given = {f"-global {name}=": one.get(name, "") for one in line.all("global")}
    given["-cpu phys-bits="] = cpu.get("phys-bits", "")
    for where, text in given.items():
        if bits := number(text):
            return bits, where
    if cpu.get("model") in ("host", "max") or cpu.get("host-phys-bits") == "on":
        limit, own = number(cpu.get("host-phys-bits-limit", "")), _own_bits(host)
        return (min(own, limit), "host-phys-bits-limit=") if limit else (own, "host")
    return 40, "QEMU's default"


def _cpuinfo(host: Hypervisor) -> str:
    return host.machine.text("/proc/cpuinfo")


def _own_bits(host: Hypervisor) -> int:
    found = re.search(r"^address sizes\s*: (\d+) bits physical", _cpuinfo(host), re.M)
    if found is None:
        raise CannotLook("/proc/cpuinfo has no line `address sizes`")
    return int(found[1])


def _amd(host: Hypervisor, line: CommandLine) -> bool:
    """Whether the guest's processor is AMD's, for all that its command line says."""
    model = next(iter(line.all("cpu")), {}).get("model", "")
    if model in ("host", "max"):
        return "AuthenticAMD" in _cpuinfo(host)
    # qemu64, QEMU's default, says that it is AMD's; and so do models named after them.
    return model in ("", "qemu64") or model.startswith(("EPYC", "Opteron", "phenom"))


@each_device
def root_ports(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether all windows are plugged, and there are root ports for them."""
    plugging = device["plugging"]
    if plugging is None:
        raise CannotLook("its windows are not plugged, but on the command line")
    lacking = sorted(set(plugging["wanted"]) - set(plugging["plugged"]))
    if plugging["problem"] or lacking:
        why = plugging["problem"] or "no reason is known yet"
        yield error(
            _status(device),
            f"windows {', '.join(map(str, lacking)) or 'none'} lack in "
            f"{plugging['slave']}: {why}",
            means="no ring runs until the slave has all windows",
            repair="one root port with room for each: see vhostpci-host qemu-args (or "
            f"xml) {device['name']} --role slave",
        )
        return
    try:
        pid, line = host.peer_line(device, "slave")
    except CannotLook:
        yield ok(_status(device), f"{len(plugging['plugged'])} windows are plugged")
        return
    ports = list(line.devices(*TYPES))
    largest = max([device["memory"]["window"], *(w["size"] for w in device["windows"])])
    large = [one for one in ports if _reserved(one) >= largest]
    looked_at, found = f"{process(pid)}/cmdline", f"{len(large)} of {len(ports)} fit"
    if large:
        yield ok(looked_at, f"{found} a window of {mib(largest)}")
        return
    yield warn(
        looked_at,
        f"{found} a window of {mib(largest)}",
        means="it is plugged now; after a reboot of the slave there may be no place",
        repair=f"pref64-reserve={2 * largest >> 20}M for a root port, as vhostpci-host "
        f"qemu-args {device['name']} --role slave prints it",
    )


def _reserved(port: Values) -> int:
    """Return the bytes that firmware reserves behind a root port."""
    text = port.get("pref64-reserve", "0")
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
    found = number(text.rstrip("kKmMgGtT")) or 0
    return found * units.get(text[-1:].upper(), 1)


@each_device
def agent(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether an agent serves the device."""
    del host
    if device["slave"] is None:
        raise CannotLook("no slave is connected")
    said, state = device["agent"], device["state"]
    if said["state"] in ("failed", "waiting", "mismatch"):
        yield error(
            _status(device),
            f"{said['state']}: {said['message']}",
            means="the agent is there, and serves no ring",
            repair="what that line says; vhostpci-guest doctor in the slave says more",
        )
    elif said["state"] != "ready" or not (
        said["present"] or state == "agent is silent"
    ):
        yield error(
            _status(device),
            "no agent",
            means="the slave runs, and nothing in it serves the device",
            repair="in the slave: vhostpci-guest run (systemctl status vhostpci-guest)",
        )
    else:
        plane = said["data_plane"] or "ring"
        yield ok(_status(device), f"ready ({said['binding']}, data plane {plane})")


@each_device
def version(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether the agent is of our version."""
    running = device["agent"].get("version")
    if device["slave"] is None or not running:
        raise CannotLook("no agent says its version")
    if running == host.version:
        yield ok(_status(device), running)
        return
    yield warn(
        _status(device),
        f"the agent is {running}, and {host.version} is installed here",
        means="they work together if both know the metadata's version; what only the "
        "later one can do is missing",
        repair="install the same version in the slave, and restart the agent there",
    )


@each_device
def heartbeat(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look when the agent was heard last."""
    del host
    said = device["agent"]
    if "heard" not in said:
        raise CannotLook("the daemon is of an earlier version, which does not say it")
    if said["heard"] is None or device["slave"] is None:
        raise CannotLook("no agent has said anything yet")
    found = f"{said['heard']:.1f} s ago"
    if said["state"] == "none" or said["heard"] < _HEARD:
        yield ok(_status(device), found)
        return
    yield error(
        _status(device),
        found,
        means="the agent hangs or is stopped, or the slave VM is paused or has no "
        "processor to run on",
        repair="nothing, if it comes back; else restart the agent (in a slave VM end "
        "the old one first)",
    )
