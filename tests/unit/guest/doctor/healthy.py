# SPDX-License-Identifier: Apache-2.0
"""A slave VM in which all is well: one device, bound by vfio, and one window of it."""

from typing import Any

from tests.fakes.machine import FakeMachine
from vhostpci_guest.doctor.slave import Slave
from vhostpci_shared.machine import Output

DEVICE, WINDOW = "0000:00:05.0", "0000:01:00.0"
AGENT, TAP, MAC = 400, "net0", "02:11:22:33:44:55"
VERSION = "0.1.0"
PCI, NET = "/sys/bus/pci/devices", "/sys/class/net"
UNIT = "/etc/systemd/system/vhostpci-guest.service"
PROGRAM = "/opt/venv/bin/vhostpci-guest"

_NO_MODULE = "no kernel module uio_vhostpci for 6.1.0-1-amd64; it is built for each"


def healthy() -> Slave:
    """Return the slave; each call makes another one, for a test to change."""
    return Slave(
        machine=_machine(),
        version=VERSION,
        program=PROGRAM,
        devices=(
            {**described(DEVICE), "agent": AGENT},
            {**described(WINDOW), "iv_position": 300, "window_of": [DEVICE]},
        ),
        links=(link(),),
    )


def _machine() -> FakeMachine:
    machine = FakeMachine()
    machine.files |= {
        "/lib/x86_64-linux-gnu/libudev.so.1": "",
        "/dev/net/tun": "",
        UNIT: "[Service]\nExecStart=vhostpci-guest run $OPTIONS\n",
        "/usr/local/bin/vhostpci-guest": "",
        "/sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
        "/proc/cmdline": "root=/dev/vda1 intel_iommu=on\n",
        "/proc/cpuinfo": "vendor_id\t: AuthenticAMD\n"
        "address sizes\t: 39 bits physical, 48 bits virtual\n",
        "/sys/firmware/acpi/tables/DMAR": "",
        f"/proc/{AGENT}/limits": "Max open files     1024       4096      files\n",
        "/etc/machine-id": "0123456789abcdef0123456789abcdef\n",
        "/sys/class/dmi/id/product_uuid": "x\n",
        "/proc/net/arp": "IP address HW type Flags HW address Mask Device\n"
        f"10.0.0.9 0x1 0x2 52:54:00:00:00:09 * {TAP}\n",
        "/usr/lib/systemd/network/99-default.link": "[Match]\nOriginalName=*\n"
        "[Link]\nMACAddressPolicy=persistent\n",
        f"{NET}/{TAP}/flags": "0x1003\n",
        f"{NET}/{TAP}/address": f"{MAC}\n",
        f"{NET}/{TAP}/addr_assign_type": "3\n",
        f"{NET}/{TAP}/upper_net0.5": "",
        f"{NET}/net0.5/address": f"{MAC}\n",
        f"{NET}/eth0/address": "52:54:00:00:00:01\n",
    }
    for address in (DEVICE, WINDOW):
        machine.files[f"{PCI}/{address}/revision"] = "0x01\n"
        machine.links[f"{PCI}/{address}/iommu_group"] = "../../iommu_groups/3"
    fds = {f"/proc/{AGENT}/fd/{number}": "socket:[1]" for number in range(9)}
    machine.links |= fds
    machine.outputs["modinfo", "-F", "srcversion", "uio_vhostpci"] = Output(0, "AB12\n")
    return machine


def described(address: str) -> dict[str, Any]:
    """Return a device as `vhostpci-guest devices -j` has it; no agent serves it."""
    return {
        "address": address,
        "driver": "vfio-pci",
        "iv_position": 0,
        "window_of": [],
        "window": 1 << 30,
        "vectors": 3,
        "agent": None,
        "taken": None,
        "bindings": {
            "kmod": way(interrupts=True, why_not=_NO_MODULE),
            "vfio": way(interrupts=True),
            "uio": way(interrupts=False),
            "sysfs": way(interrupts=False),
        },
        "better": None,
    }


def way(*, interrupts: bool, why_not: str | None = None) -> dict[str, Any]:
    """Return one binding of a device."""
    return {"interrupts": interrupts, "why_not": why_not}


def link() -> dict[str, Any]:
    """Return a device as `vhostpci-guest status -j` has it."""
    return {
        "pid": AGENT,
        "version": VERSION,
        "device": DEVICE,
        "name": TAP,
        "binding": "vfio",
        "interrupts": True,
        "vectors": 3,
        "state": "ready",
        "message": "",
        "daemon": "alive",
        "daemon_silent": 0.2,
        "master": True,
        "speed": {"slow": False},
        "windows": [
            {"id": 300, "device": WINDOW, "size": 1 << 30, "speed": {"slow": False}}
        ],
        "generation": 6,
        "tap": TAP,
        "carrier": True,
        "rings": [
            {"ring": 0, "state": "running", "reason": ""},
            {"ring": 1, "state": "running", "reason": ""},
        ],
    }
