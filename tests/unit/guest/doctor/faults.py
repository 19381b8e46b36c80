# SPDX-License-Identifier: Apache-2.0
"""Faults that `vhostpci-guest doctor` must find, each seeded on a healthy slave."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.fakes.machine import FakeMachine
from tests.unit.guest.doctor.healthy import (
    AGENT,
    DEVICE,
    MAC,
    NET,
    PCI,
    TAP,
    UNIT,
    described,
    healthy,
    way,
)
from vhostpci_guest.doctor.slave import Peek, Slave
from vhostpci_shared import metadata as md

OTHER = "0000:00:06.0"
LOCKED = "kernel lockdown forbids to map BARs from sysfs"


class Seeded:
    """A healthy slave, with what a seed changes."""

    def __init__(self) -> None:
        self.slave = healthy()
        assert isinstance(self.slave.machine, FakeMachine)
        self.machine = self.slave.machine
        self.device, self.window = self.slave.devices
        (self.link,) = self.slave.links

    def other(self, seen: Peek | None = None, **values: object) -> Slave:
        """Return the slave with one device more, which no agent serves."""
        self.machine.files[f"{PCI}/{OTHER}/revision"] = "0x01\n"
        self.machine.links[f"{PCI}/{OTHER}/iommu_group"] = "../../iommu_groups/4"
        more = {**described(OTHER), **values}
        devices = (*self.slave.devices, more)
        peek = peeked() if seen is None else seen
        return replace(self.slave, devices=devices, peek=lambda _: peek)

    def polls(self, vfio: str) -> None:
        """Let no binding with interrupts be possible."""
        self.link |= {"binding": "sysfs", "interrupts": False}
        for device in self.slave.devices:
            device["bindings"]["vfio"]["why_not"] = vfio


def peeked(
    *,
    magic: bytes = md.MAGIC,
    version: int = md.VERSION,
    generation: int = 4,
    beats: bool = True,
    vectors: int = 3,
) -> Peek:
    """Return the start of the metadata of a device that a daemon serves."""
    device = md.Device(
        instance=1,
        features=0,
        flags=md.DeviceFlag.MASTER,
        queue_pairs=1,
        vectors=vectors,
        daemon_peer=1,
        mtu=0,
        region_count=0,
        ring_count=2,
        name="other",
    )
    header = md.Header(magic, version, md.SIZE, generation, 7)
    later = replace(header, heartbeat=8) if beats else header
    before, after = (
        bytes(one).ljust(md.DEVICE, b"\0") + bytes(device) for one in (header, later)
    )
    return Peek(before, after)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, and the check that must name it."""

    name: str
    check: str
    seed: Callable[[Seeded], Slave | None]
    """Changes the slave, or returns another."""


def _arm(on: Seeded) -> None:
    on.machine.uname = "aarch64", "6.1.0"


def _no_libudev(on: Seeded) -> None:
    del on.machine.files["/lib/x86_64-linux-gnu/libudev.so.1"]


def _no_tun(on: Seeded) -> None:
    del on.machine.files["/dev/net/tun"]


def _venv(on: Seeded) -> None:
    del on.machine.files["/usr/local/bin/vhostpci-guest"]


def _drop_in(on: Seeded) -> None:
    path = f"{UNIT}.d/local.conf"
    on.machine.files[path] = "[Service]\nExecStart=\nExecStart=-/srv/gone/x run\n"


def _no_device(on: Seeded) -> Slave:
    return replace(on.slave, devices=(), links=())


def _old_revision(on: Seeded) -> None:
    on.machine.files[f"{PCI}/{DEVICE}/revision"] = "0x00\n"


def _foreign_driver(on: Seeded) -> Slave:
    return on.other(taken="bound to ivshmem-net, which the agent does not unbind")


def _in_use(on: Seeded) -> Slave:
    return on.other(taken="in use by testpmd (77) through vfio-pci")


def _amd_hole(on: Seeded) -> Slave:
    on.machine.files["/proc/cpuinfo"] = "AuthenticAMD 40 bits physical"
    return on.other(window=0)


def _no_room(on: Seeded) -> Slave:
    return on.other(window=0)


def _no_binding(on: Seeded) -> Slave:
    ways = {name: way(interrupts=False, why_not="no") for name in ("kmod", "vfio")}
    return on.other(bindings=ways)


def _bound_too_early(on: Seeded) -> None:
    on.link |= {"binding": "sysfs", "interrupts": False}


def _no_vfio_module(on: Seeded) -> None:
    on.polls("no kernel module vfio-pci for 6.1.0-1-cloud-amd64")


def _old_module(on: Seeded) -> None:
    on.machine.files["/sys/module/uio_vhostpci/srcversion"] = "99FF\n"


def _no_viommu(on: Seeded) -> None:
    on.polls("the slave VM has no vIOMMU")
    del on.machine.files["/sys/firmware/acpi/tables/DMAR"]
    on.machine.links = {
        path: to for path, to in on.machine.links.items() if "iommu_group" not in path
    }


def _no_intel_iommu(on: Seeded) -> None:
    on.polls("the slave VM has no vIOMMU")
    on.machine.files["/proc/cmdline"] = "root=/dev/vda1\n"
    on.machine.links = {
        path: to for path, to in on.machine.links.items() if "iommu_group" not in path
    }


def _locked_down(on: Seeded) -> Slave:
    on.machine.files["/sys/kernel/security/lockdown"] = "none [integrity] confid\n"
    ways = {
        "kmod": way(interrupts=True, why_not="Secure Boot refuses the module"),
        "vfio": way(interrupts=True, why_not="the slave VM has no vIOMMU"),
        "uio": way(interrupts=False, why_not=LOCKED),
        "sysfs": way(interrupts=False, why_not=LOCKED),
    }
    return on.other(bindings=ways)


def _plain(on: Seeded) -> Slave:
    return on.other(vectors=0)


def _few_vectors(on: Seeded) -> Slave:
    return on.other(peeked(vectors=9))


def _no_server(on: Seeded) -> None:
    on.device["iv_position"] = 0xFFFF_FFFF


def _not_ours(on: Seeded) -> Slave:
    return on.other(peeked(magic=b"\0" * 8))


def _later_version(on: Seeded) -> Slave:
    return on.other(peeked(version=2))


def _never_published(on: Seeded) -> Slave:
    return on.other(peeked(generation=1))


def _hanging_agent(on: Seeded) -> Slave:
    why = "agent 400: it does not answer within 1 s"
    return replace(on.slave, problems=(why,))


def _failed_agent(on: Seeded) -> None:
    on.link |= {"state": "failed", "message": "the TAP is gone"}


def _no_agent(on: Seeded) -> Slave:
    return on.other()


def _old_agent(on: Seeded) -> None:
    del on.link["version"]


def _few_descriptors(on: Seeded) -> None:
    links = {f"/proc/{AGENT}/fd/{number}": "x" for number in range(1000)}
    on.machine.links |= links


def _silent_daemon(on: Seeded) -> None:
    on.link["daemon"] = "silent"


def _lost_daemon(on: Seeded) -> None:
    on.link["daemon"] = "not connected to this device"


def _dead_daemon(on: Seeded) -> Slave:
    # Of a device without an agent the heartbeat itself is looked at.
    seen = peeked(beats=False)
    on.device["agent"] = None
    return replace(on.slave, links=(), forbidden="run as root", peek=lambda _: seen)


def _no_master(on: Seeded) -> None:
    on.link["master"] = False


def _absent_window(on: Seeded) -> None:
    on.link["windows"][0]["device"] = None


def _slow_window(on: Seeded) -> None:
    on.link["windows"][0]["speed"] = {"slow": True}


def _broken_ring(on: Seeded) -> None:
    on.link["rings"][0] |= {"state": "broken", "reason": "head 300 of 256"}


def _tap_down(on: Seeded) -> None:
    on.machine.files[f"{NET}/{TAP}/flags"] = "0x1002\n"


def _renamed_tap(on: Seeded) -> None:
    on.link["name"] = "wan"
    path = "/etc/systemd/network/wan.network"
    on.machine.files[path] = "[Match]\nName=wan\n[Network]\nAddress=10.0.0.1/24\n"


def _renamed_for_ifupdown(on: Seeded) -> None:
    on.link["name"] = "wan"
    on.machine.files["/etc/network/interfaces"] = "auto wan\niface wan inet dhcp\n"


def _random_mac(on: Seeded) -> None:
    on.machine.files[f"{NET}/{TAP}/addr_assign_type"] = "1\n"


def _same_mac(on: Seeded) -> None:
    on.machine.files[f"{NET}/eth0/address"] = f"{MAC}\n"


def _clone(on: Seeded) -> None:
    on.machine.files["/proc/net/arp"] += f"10.0.0.7 0x1 0x2 {MAC} * eth0\n"


def _no_machine_id(on: Seeded) -> None:
    on.machine.files["/etc/machine-id"] = "uninitialized\n"


FAULTS = (
    Fault("another processor", "architecture", _arm),
    Fault("no libudev", "libudev", _no_libudev),
    Fault("no /dev/net/tun", "tun", _no_tun),
    Fault("unit and virtual environment", "unit", _venv),
    Fault("drop-in names a program that is gone", "unit", _drop_in),
    Fault("no ivshmem device", "device", _no_device),
    Fault("ivshmem of revision 0", "device", _old_revision),
    Fault("bound to another driver", "driver", _foreign_driver),
    Fault("in use by another process", "driver", _in_use),
    Fault("BAR 2 in AMD's reserved hole", "window-place", _amd_hole),
    Fault("BAR 2 without room", "window-place", _no_room),
    Fault("no binding is possible", "binding", _no_binding),
    Fault("agent polls without need", "binding", _bound_too_early),
    Fault("no module vfio-pci", "module", _no_vfio_module),
    Fault("uio_vhostpci of before the upgrade", "module", _old_module),
    Fault("no vIOMMU", "iommu", _no_viommu),
    Fault("no intel_iommu=on", "iommu", _no_intel_iommu),
    Fault("lockdown", "lockdown", _locked_down),
    Fault("ivshmem-plain", "vectors", _plain),
    Fault("too few vectors", "vectors", _few_vectors),
    Fault("no server at the device", "position", _no_server),
    Fault("not our metadata", "metadata", _not_ours),
    Fault("metadata of a later version", "metadata", _later_version),
    Fault("daemon never published", "metadata", _never_published),
    Fault("agent hangs", "agent", _hanging_agent),
    Fault("agent failed", "agent", _failed_agent),
    Fault("no agent", "agent", _no_agent),
    Fault("agent of an earlier version", "agent-version", _old_agent),
    Fault("agent has few descriptors", "descriptors", _few_descriptors),
    Fault("daemon is silent", "daemon", _silent_daemon),
    Fault("daemon was started again", "daemon", _lost_daemon),
    Fault("daemon is dead, and there is no agent", "daemon", _dead_daemon),
    Fault("no master", "master", _no_master),
    Fault("a window is not plugged", "windows", _absent_window),
    Fault("a window is uncached", "window-speed", _slow_window),
    Fault("a ring is broken", "rings", _broken_ring),
    Fault("TAP is down", "tap", _tap_down),
    Fault("TAP was renamed, networkd", "tap-name", _renamed_tap),
    Fault("TAP was renamed, ifupdown", "tap-name", _renamed_for_ifupdown),
    Fault("MAC is random", "tap-mac", _random_mac),
    Fault("another interface has the MAC", "tap-mac", _same_mac),
    Fault("a clone in the network", "machine-id", _clone),
    Fault("no machine-id", "machine-id", _no_machine_id),
)
