# SPDX-License-Identifier: Apache-2.0
"""A hypervisor on which all is well: three devices, each with its master and slave VM.

web: arena mode, its slave's device on the command line.
db: attach mode, its windows plugged by QMP.
safe: a confined device, arena mode.
"""

import stat
from pathlib import Path
from typing import Any

from tests.fakes.machine import FakeMachine
from vhostpci_host.doctor.hypervisor import Hypervisor
from vhostpci_shared.machine import FileInfo, Output

GIB = 1 << 30
RUN, MEMORY = "/run/vhostpci", "/dev/shm/vhostpci"
QEMU = "/usr/bin/qemu-system-x86_64"
DAEMON, WEB_MASTER, WEB_SLAVE, DB_MASTER, DB_SLAVE = 100, 200, 201, 300, 301
SAFE_MASTER, SAFE_SLAVE = 400, 401
DAEMON_UID, LIBVIRT_UID = 64100, 64055
VERSION = "0.1.0"
UNIT = "/lib/systemd/system/vhostpci-host.service"

_FEATURES = ["NET_F_CSUM", "NET_F_GUEST_TSO4", "F_VERSION_1"]
_DEVICES_HELP = """\
Network devices:
name "virtio-net-pci", bus PCI, alias "virtio-net"

Misc devices:
name "ivshmem-doorbell", bus PCI, desc "Inter-VM shared memory"
"""


CARD = {
    "driver": "virtio-net-pci",
    "iommu_platform": "on",
    "backend": "vhost-user",
}
HARMLESS = ("pcie-root-port", "virtio-blk-pci", "pc-dimm", "host-x86_64-cpu", "VGA")
"""What else a monitor says that a confined master has."""


def healthy() -> Hypervisor:
    """Return the hypervisor; each call makes another one, for a test to change."""
    machine = FakeMachine()
    _system(machine)
    devices = (_web(), _db(), _safe())
    for inode, device in enumerate(devices, start=10):
        _sockets(machine, device, inode * 10)
    _arena(machine, devices[0], WEB_MASTER)
    _arena(machine, devices[2], SAFE_MASTER)
    _qemus(machine)
    return Hypervisor(
        machine=machine,
        run_dir=RUN,
        version=VERSION,
        devices=devices,
        qemu=QEMU,
        plugged=lambda: [
            CARD,
            CARD | {"iommu_platform": "off", "backend": ""},
            *({"driver": one} for one in HARMLESS),
        ],
    )


def _system(machine: FakeMachine) -> None:
    machine.outputs[QEMU, "-version"] = Output(0, "QEMU emulator version 10.0.2 (x)\n")
    machine.outputs[QEMU, "-device", "help"] = Output(0, _DEVICES_HELP)
    machine.outputs["journalctl", "-k", "-b", "-q", "-o", "cat", "-n", "20000"] = (
        Output(
            0, 'Linux version 6.1.0\naudit: type=1400 apparmor="DENIED" name="/etc/x"\n'
        )
    )
    machine.files |= {
        "/dev/kvm": "",
        UNIT: "[Service]\nUser=vhostpci\nExecStart=vhostpci-host run --config x\n",
        "/usr/bin/vhostpci-host": "",
        "/proc/cpuinfo": "vendor_id\t: AuthenticAMD\n"
        "address sizes\t: 48 bits physical, 48 bits virtual\n",
        "/proc/meminfo": "MemTotal: 64 kB\nHugePages_Total: 0\nHugePages_Free: 0\n"
        "Hugepagesize: 2048 kB\n",
        "/proc/sys/fs/file-nr": "2000\t0\t100000\n",
        "/etc/passwd": "root:x:0:0::/root:/bin/sh\n"
        f"vhostpci:x:{DAEMON_UID}:{DAEMON_UID}::/:/usr/sbin/nologin\n"
        f"libvirt-qemu:x:{LIBVIRT_UID}:108::/var/lib/libvirt:/usr/sbin/nologin\n",
        "/etc/group": f"vhostpci:x:{DAEMON_UID}:libvirt-qemu\nkvm:x:108:\n",
    }
    for pid in (
        *(DAEMON, WEB_MASTER, WEB_SLAVE, DB_MASTER, DB_SLAVE),
        *(SAFE_MASTER, SAFE_SLAVE),
    ):
        _process(machine, pid)
    machine.infos[f"/proc/{DAEMON}"] = FileInfo(
        inode=(9, 9), uid=DAEMON_UID, gid=DAEMON_UID, mode=stat.S_IFDIR | 0o555
    )


def _process(machine: FakeMachine, pid: int) -> None:
    group = f"/system.slice/{pid}.service"
    machine.files |= {
        f"/proc/{pid}/limits": "Limit       Soft Limit   Hard Limit   Units\n"
        "Max open files            1024                 4096                 files\n"
        "Max locked memory         8388608              8388608              bytes\n",
        f"/proc/{pid}/cgroup": f"0::{group}\n",
        f"/sys/fs/cgroup{group}/memory.max": "max\n",
    }
    machine.links |= {f"/proc/{pid}/fd/{number}": "socket:[1]" for number in range(9)}


def _sockets(machine: FakeMachine, device: dict[str, Any], inode: int) -> None:
    device["socket_files"] = []
    for number, path in enumerate(device["sockets"].values(), start=inode):
        machine.infos[path] = FileInfo(
            inode=(5, number),
            uid=DAEMON_UID,
            gid=DAEMON_UID,
            mode=stat.S_IFSOCK | 0o660,
        )
        device["socket_files"].append({"path": path, "device": 5, "inode": number})
    machine.infos[str(Path(RUN))] = FileInfo(
        inode=(5, 1), uid=DAEMON_UID, gid=DAEMON_UID, mode=stat.S_IFDIR | 0o755
    )


def _arena(machine: FakeMachine, device: dict[str, Any], master: int) -> None:
    memory = device["memory"]
    machine.infos[memory["path"]] = FileInfo(
        inode=(memory["file"]["device"], memory["file"]["inode"]),
        uid=DAEMON_UID,
        gid=DAEMON_UID,
        mode=stat.S_IFREG | 0o660,
        allocated=GIB // 2,
    )
    machine.infos["/dev/shm"] = FileInfo(
        inode=(6, 1), uid=0, gid=0, mode=stat.S_IFDIR | 0o1777
    )
    machine.rooms["/dev/shm"] = 8 * GIB
    path = memory["path"]
    machine.files[f"/proc/{master}/maps"] = f"7f00-7f40 rw-s 00:1a 77   {path}\n"


def _qemus(machine: FakeMachine) -> None:
    web, db = f"{RUN}/web", f"{RUN}/db"
    lines = {
        WEB_MASTER: "-m 1024M -machine memory-backend=m "
        f"-object memory-backend-file,id=m,size=1024M,mem-path={MEMORY}/web,share=on "
        f"-chardev socket,id=c,path={web}.vhost-user,reconnect-ms=1000 "
        "-netdev vhost-user,id=n,chardev=c "
        "-device virtio-net-pci,netdev=n,ctrl_guest_offloads=off",
        WEB_SLAVE: "-machine q35,kernel-irqchip=split -m 512M "
        "-device intel-iommu,intremap=on "
        f"-chardev socket,id=c,path={web}.ivshmem "
        "-device ivshmem-doorbell,id=d,chardev=c,vectors=3 "
        "-global x86_64-cpu.phys-bits=39",
        DB_MASTER: '-m size=1048576k -object {"qom-type":"memory-backend-memfd",'
        '"id":"ram","share":true,"size":1073741824} '
        f"-chardev socket,id=c,path={db}.vhost-user,reconnect-ms=1000,server=off "
        '-netdev {"type":"vhost-user","chardev":"c","id":"n"} '
        '-device {"driver":"virtio-net-pci","netdev":"n","ctrl_guest_offloads":false}',
        DB_SLAVE: "-machine q35,kernel-irqchip=split -m 512M "
        "-device intel-iommu,intremap=on "
        "-device pcie-root-port,id=a,pref64-reserve=2048M "
        "-device pcie-root-port,id=b,pref64-reserve=2048M "
        "-global x86_64-cpu.phys-bits=39 -qmp unix:/run/db.qmp,server=on,wait=off",
    }
    lines[SAFE_MASTER] = _safe_master(f"{RUN}/safe")
    lines[SAFE_SLAVE] = lines[WEB_SLAVE].replace(web, f"{RUN}/safe")
    for pid, line in lines.items():
        words = [QEMU, *line.split()]
        if pid == SAFE_MASTER:
            words += ["-append", SAFE_WORDS]
        machine.files[f"/proc/{pid}/cmdline"] = "\0".join(words) + "\0"


def _safe_master(socket: str) -> str:
    return (
        "-machine q35,max-ram-below-4g=652M,sata=off -m 1676M "
        "-object memory-backend-ram,id=m0,size=512M "
        f"-object memory-backend-file,id=m1,size=80M,mem-path={MEMORY}/safe,share=on "
        "-object memory-backend-ram,id=m2,size=60M "
        "-object memory-backend-ram,id=m3,size=1G "
        f"-chardev socket,id=c,path={socket}.vhost-user,reconnect-ms=1000 "
        "-netdev vhost-user,id=n,chardev=c "
        "-device virtio-net-pci,netdev=n,iommu_platform=on,disable-legacy=on,"
        "ctrl_guest_offloads=off,ctrl_vq=off,ctrl_rx=off,ctrl_vlan=off,"
        "ctrl_rx_extra=off,ctrl_mac_addr=off,guest_announce=off "
        "-device virtio-blk-pci,drive=d -device pcie-root-port,id=p "
    )


SAFE_WORDS = (
    "numa=off nokaslr swiotlb=32768,force cma=16M@0x24000000-0x25000000 "
    "memmap=60M%0x25000000-1+2 init_on_alloc=1 "
    'sysctl.vm.lowmem_reserve_ratio="1 1"'
)
"""The words of its kernel."""


def _safe() -> dict[str, Any]:
    shared = 80 << 20
    region = {"guest_addr": 0x20000000, "size": shared, "window": 0, "offset": 0}
    return {
        **_device("safe", SAFE_MASTER, SAFE_SLAVE, region),
        "mode": "arena",
        "confined": {"shared": shared, "memory": 1676 << 20, "pool": 64 << 20},
        "memory": {
            **_web()["memory"],
            "size": shared,
            "window": 128 << 20,
            "path": f"{MEMORY}/safe",
            "file": {"device": 6, "inode": 78},
        },
        "windows": [],
    }


def _web() -> dict[str, Any]:
    memory = {
        "size": GIB,
        "window": 2 * GIB,
        "path": f"{MEMORY}/web",
        "file": {"device": 6, "inode": 77},
        "filesystem": "tmpfs",
        "problem": None,
    }
    region = {"guest_addr": 0, "size": GIB, "window": 0, "offset": 0}
    device = _device("web", WEB_MASTER, WEB_SLAVE, region)
    return {**device, "mode": "arena", "memory": memory, "windows": []}


def _db() -> dict[str, Any]:
    memory = {
        "size": 0,
        "window": 1 << 16,
        "path": None,
        "file": None,
        "filesystem": "memfd",
        "problem": None,
    }
    region = {"guest_addr": 0, "size": GIB, "window": 300, "offset": 0}
    window = {"window": 300, "size": GIB, "socket": f"{RUN}/db.ivshmem.300"}
    return {
        **_device("db", DB_MASTER, DB_SLAVE, region),
        "mode": "attach",
        "memory": memory,
        "windows": [{**window, "connected": True}],
        "plugging": {
            "slave": "/run/db.qmp",
            "connected": True,
            "plugged": [0, 300],
            "wanted": [0, 300],
            "problem": "",
        },
    }


def _device(name: str, master: int, slave: int, region: dict[str, Any]) -> Any:
    return {
        "name": name,
        "state": "running",
        "daemon": {"pid": DAEMON, "version": VERSION},
        "plugging": None,
        "confined": None,
        "queue_pairs": 1,
        "vectors": 3,
        "sockets": {
            "vhost_user": f"{RUN}/{name}.vhost-user",
            "ivshmem": f"{RUN}/{name}.ivshmem",
            "control": f"{RUN}/{name}.control",
        },
        "connects": False,
        "connect_problem": None,
        "carrier": {"off": False, "why_off": None, "refused": None, "problem": None},
        "features": {"withheld": [], "mismatch": None},
        "master": {
            "pid": master,
            "features": _FEATURES,
            "problem": None,
            "regions": [region],
        },
        "slave": {"pid": slave},
        "slave_problem": None,
        "agent": {
            "present": True,
            "state": "ready",
            "binding": "vfio",
            "data_plane": "ring",
            "vectors": 3,
            "message": "",
            "heard": 0.1,
            "version": VERSION,
        },
        "rings": [_ring("rx0"), _ring("tx0")],
    }


def _ring(queue: str) -> dict[str, Any]:
    return {
        "queue": queue,
        "state": "running",
        "problem": "",
        "kicks_relayed": 0,
        "kick_direct": True,
    }
