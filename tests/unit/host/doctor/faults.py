# SPDX-License-Identifier: Apache-2.0
"""Faults that `vhostpci-host doctor` must find, each seeded on a healthy hypervisor."""

import stat
from dataclasses import replace

from tests.unit.host.doctor.confined_faults import CONFINED_FAULTS
from tests.unit.host.doctor.healthy import (
    DAEMON,
    DAEMON_UID,
    DB_MASTER,
    DB_SLAVE,
    GIB,
    LIBVIRT_UID,
    MEMORY,
    QEMU,
    RUN,
    WEB_MASTER,
    WEB_SLAVE,
)
from tests.unit.host.doctor.seeded import Fault, Seeded
from vhostpci_host.doctor.hypervisor import Hypervisor, Silent
from vhostpci_shared.machine import FileInfo, Output

LOG = ("journalctl", "-k", "-b", "-q", "-o", "cat", "-n", "20000")


def _no_qemu(on: Seeded) -> Hypervisor:
    return replace(on.host, qemu=None)


def _old_qemu(on: Seeded) -> None:
    said = "QEMU emulator version 6.2.0 (Debian)\n"
    on.machine.outputs[QEMU, "-version"] = Output(0, said)


def _broken_qemu(on: Seeded) -> None:
    said = "error while loading shared libraries: libpixman-1.so.0"
    on.machine.outputs[QEMU, "-version"] = Output(127, "", said)


def _without_ivshmem(on: Seeded) -> None:
    on.machine.outputs[QEMU, "-device", "help"] = Output(0, 'name "ivshmem-plain"\n')


def _no_kvm(on: Seeded) -> None:
    del on.machine.files["/dev/kvm"]


def _arm(on: Seeded) -> None:
    on.machine.uname = "aarch64", "6.1.0"


def _no_daemon(on: Seeded) -> Hypervisor:
    return replace(on.host, devices=())


def _killed_daemon(on: Seeded) -> Hypervisor:
    silent = Silent(f"{RUN}/old.control", "no process listens there", killed=True)
    return replace(on.host, silent=(silent,))


def _hanging_daemon(on: Seeded) -> Hypervisor:
    return replace(on.host, silent=(Silent(f"{RUN}/x.control", "does not answer"),))


def _venv(on: Seeded) -> None:
    del on.machine.files["/usr/bin/vhostpci-host"]


def _no_user(on: Seeded) -> None:
    path = "/etc/passwd"
    on.machine.files[path] = on.machine.files[path].replace("vhostpci:", "other:")


def _failed_device(on: Seeded) -> Hypervisor:
    failed = {"name": "app", "mode": "arena", "state": "failed", "reason": "no space"}
    return replace(on.host, devices=(*on.host.devices, failed))


def _old_daemon(on: Seeded) -> None:
    for device in (on.web, on.db):
        device["daemon"]["version"] = "0.0.9"


def _few_descriptors(on: Seeded) -> None:
    links = {f"/proc/{DAEMON}/fd/{number}": "socket:[1]" for number in range(1000)}
    on.machine.links |= links


def _few_on_machine(on: Seeded) -> None:
    on.machine.files["/proc/sys/fs/file-nr"] = "99000\t0\t100000\n"


def _small_cgroup(on: Seeded) -> None:
    path = f"/sys/fs/cgroup/system.slice/{WEB_MASTER}.service/memory.max"
    on.machine.files[path] = f"{GIB // 4}\n"


def _small_slice(on: Seeded) -> None:
    on.machine.files["/sys/fs/cgroup/system.slice/memory.max"] = f"{GIB // 2}\n"


def _small_memlock(on: Seeded) -> None:
    on.line(WEB_MASTER, "-m 1024M", "-m 1024M -overcommit mem-lock=on")


def _denied_by_apparmor(on: Seeded) -> None:
    line = f'audit: apparmor="DENIED" operation="connect" name="{RUN}/web.vhost-user"'
    on.machine.outputs[LOG] = Output(0, f"Linux version\n{line}\n")


def _denied_by_selinux(on: Seeded) -> None:
    line = f'avc:  denied  {{ write }} for comm="qemu-kvm" path="{MEMORY}/web"'
    on.machine.outputs[LOG] = Output(0, f"Linux version\n{line}\n")


def _run_dir_for_all(on: Seeded) -> None:
    on.change(RUN, mode=stat.S_IFDIR | 0o777)


def _memory_dir_of_a_user(on: Seeded) -> None:
    on.machine.infos[MEMORY] = FileInfo(
        inode=(6, 2), uid=1000, gid=1000, mode=stat.S_IFDIR | 0o755
    )


def _run_dir_of_a_group(on: Seeded) -> None:
    on.change(RUN, mode=stat.S_IFDIR | 0o775, gid=100)


def _long_path(on: Seeded) -> None:
    on.web["sockets"]["ivshmem"] = f"{RUN}/{'x' * 90}.ivshmem"


def _other_inode(on: Seeded) -> None:
    on.change(f"{RUN}/web.vhost-user", inode=(5, 999), uid=LIBVIRT_UID)


def _removed_socket(on: Seeded) -> None:
    del on.machine.infos[f"{RUN}/web.ivshmem"]


def _file_for_socket(on: Seeded) -> None:
    path = f"{RUN}/web.vhost-user"
    on.change(path, inode=(5, 999), mode=stat.S_IFREG | 0o660)


def _libvirt_not_in_group(on: Seeded) -> None:
    on.db["plugging"]["slave"] = "switch"
    on.machine.files["/etc/group"] = "kvm:x:108:\n"


def _closed_run_dir(on: Seeded) -> None:
    on.db["plugging"]["slave"] = "switch"
    on.change(RUN, mode=stat.S_IFDIR | 0o700)


def _full_memory(on: Seeded) -> None:
    on.machine.rooms["/dev/shm"] = 1 << 20


def _other_arena(on: Seeded) -> None:
    on.change(f"{MEMORY}/web", inode=(6, 999))


def _removed_arena(on: Seeded) -> None:
    del on.machine.infos[f"{MEMORY}/web"]
    on.machine.infos[MEMORY] = FileInfo(
        inode=(6, 2), uid=0, gid=0, mode=stat.S_IFDIR | 0o755
    )


def _person_in_shm(on: Seeded) -> None:
    for path, info in list(on.machine.infos.items()):
        if info.uid == DAEMON_UID:
            on.change(path, uid=1000)


def _not_shared(on: Seeded) -> None:
    on.web["state"] = "master's memory is not shared"


def _one_node_private(on: Seeded) -> None:
    on.line(WEB_MASTER, "-netdev", "-object memory-backend-ram,id=node1 -netdev")


def _private_memfd(on: Seeded) -> None:
    on.line(DB_MASTER, '"share":true', '"share":false')


def _mapped_private(on: Seeded) -> None:
    path = f"/proc/{WEB_MASTER}/maps"
    on.machine.files[path] = on.machine.files[path].replace("rw-s", "rw-p")


def _private_by_monitor(on: Seeded) -> Hypervisor:
    memdevs = [{"id": "node0", "share": True}, {"id": "node1", "share": False}]
    return replace(on.host, memdevs=lambda: memdevs)


def _node_missing(on: Seeded) -> None:
    on.line(DB_MASTER, "size=1048576k", "size=2097152k")


def _odd_file(on: Seeded) -> None:
    on.db["windows"][0]["size"] = 3 * GIB // 4


def _larger_master(on: Seeded) -> None:
    on.web["master"]["regions"][0]["size"] = 2 * GIB


def _server_on(on: Seeded) -> None:
    on.line(WEB_MASTER, "web.vhost-user,", "web.vhost-user,server=on,")


def _short_server(on: Seeded) -> None:
    on.line(WEB_MASTER, "web.vhost-user,", "web.vhost-user,server,nowait,")


def _swapped_sockets(on: Seeded) -> None:
    on.line(WEB_SLAVE, "web.ivshmem", "web.vhost-user")


def _no_server(on: Seeded) -> None:
    on.web["connects"] = True


def _no_master(on: Seeded) -> None:
    on.db["master"], on.db["state"] = None, "no master"


def _hanging_front_end(on: Seeded) -> None:
    on.web["state"] = "front-end hangs"


def _no_reconnect(on: Seeded) -> None:
    on.line(WEB_MASTER, ",reconnect-ms=1000", "")


def _guest_offloads(on: Seeded) -> None:
    on.line(WEB_MASTER, ",ctrl_guest_offloads=off", "")


def _mismatch(on: Seeded) -> None:
    on.web["features"]["mismatch"] = "the data plane vhost-net lacks F_RING_PACKED"


def _keeps_carrier(on: Seeded) -> None:
    on.web["carrier"]["problem"] = "the master's card keeps its carrier"


def _refused_for_good(on: Seeded) -> None:
    on.web["carrier"] |= {"off": True, "why_off": "master's memory is refused"}
    on.web["carrier"]["refused"] = "the memory at 0x0 is not the shared region"


def _lost_ring(on: Seeded) -> None:
    on.web["rings"][0]["problem"] = "nothing says where it stands"


def _relayed_kicks(on: Seeded) -> None:
    on.web["rings"][1] |= {"kick_direct": False, "kicks_relayed": 700}


def _stale_slave(on: Seeded) -> None:
    on.web["slave_problem"] = "the slave VM is connected to an earlier daemon"


def _no_slave(on: Seeded) -> None:
    on.web["slave"] = None


def _few_vectors(on: Seeded) -> None:
    on.line(WEB_SLAVE, "vectors=3", "vectors=2")


def _default_vectors(on: Seeded) -> None:
    on.line(WEB_SLAVE, ",vectors=3", "")


def _few_for_agent(on: Seeded) -> None:
    on.db["agent"]["vectors"] = 1


def _no_viommu(on: Seeded) -> None:
    on.line(WEB_SLAVE, "-device intel-iommu,intremap=on ", "")


def _no_intremap(on: Seeded) -> None:
    on.line(WEB_SLAVE, "intremap=on", "intremap=off")


def _whole_irqchip(on: Seeded) -> None:
    on.line(WEB_SLAVE, "q35,kernel-irqchip=split", "q35")


def _amd_hole(on: Seeded) -> None:
    on.line(DB_SLAVE, "-global x86_64-cpu.phys-bits=39 ", "")


def _few_bits(on: Seeded) -> None:
    on.line(WEB_SLAVE, "phys-bits=39", "phys-bits=31")


def _not_plugged(on: Seeded) -> None:
    on.db["plugging"] |= {"plugged": [0], "problem": "no free pcie-root-port"}


def _small_root_ports(on: Seeded) -> None:
    on.line(DB_SLAVE, "pref64-reserve=2048M", "pref64-reserve=2M")


def _failed_agent(on: Seeded) -> None:
    on.web["agent"] |= {"state": "failed", "message": "metadata version 2"}


def _no_agent(on: Seeded) -> None:
    on.web["agent"] |= {"state": "none", "present": False, "heard": None}


def _silent_agent(on: Seeded) -> None:
    on.web["state"] = "agent is silent"
    on.web["agent"] |= {"present": False, "heard": 71.0}


def _old_agent(on: Seeded) -> None:
    on.web["agent"]["version"] = "0.0.9"


FAULTS = (
    Fault("QEMU is not there", "qemu-version", _no_qemu),
    Fault("QEMU is too old", "qemu-version", _old_qemu),
    Fault("QEMU does not start", "qemu-version", _broken_qemu),
    Fault("QEMU without ivshmem", "qemu-ivshmem", _without_ivshmem),
    Fault("no KVM", "kvm", _no_kvm),
    Fault("another processor", "architecture", _arm),
    Fault("unit and virtual environment", "unit", _venv),
    Fault("unit without its user", "unit", _no_user),
    Fault("no daemon", "daemon", _no_daemon),
    Fault("a daemon was killed", "daemon", _killed_daemon),
    Fault("a daemon hangs", "daemon", _hanging_daemon),
    Fault("a device failed", "device", _failed_device),
    Fault("daemon of an earlier version", "daemon-version", _old_daemon),
    Fault("daemon has few descriptors", "descriptors", _few_descriptors),
    Fault("machine has few descriptors", "descriptors", _few_on_machine),
    Fault("cgroup of the master too small", "cgroup-memory", _small_cgroup),
    Fault("cgroup above it too small", "cgroup-memory", _small_slice),
    Fault("memory may not be locked", "locked-memory", _small_memlock),
    Fault("denied by AppArmor", "denials", _denied_by_apparmor),
    Fault("denied by SELinux", "denials", _denied_by_selinux),
    Fault("all users write the run directory", "directories", _run_dir_for_all),
    Fault("a group writes the run directory", "directories", _run_dir_of_a_group),
    Fault("a user's memory directory", "directories", _memory_dir_of_a_user),
    Fault("a socket's path is too long", "socket-path", _long_path),
    Fault("socket replaced by another", "socket-place", _other_inode),
    Fault("socket removed", "socket-place", _removed_socket),
    Fault("socket replaced by a file", "socket-place", _file_for_socket),
    Fault("libvirt-qemu not in the group", "socket-access", _libvirt_not_in_group),
    Fault("run directory closed to libvirt", "socket-access", _closed_run_dir),
    Fault("memory directory is full", "memory-room", _full_memory),
    Fault("arena replaced", "memory-place", _other_arena),
    Fault("arena removed", "memory-place", _removed_arena),
    Fault("logind would remove the arena", "memory-cleanup", _person_in_shm),
    Fault("memory not shared at all", "memory-shared", _not_shared),
    Fault("one NUMA node not shared", "memory-shared", _one_node_private),
    Fault("memfd with share=off", "memory-shared", _private_memfd),
    Fault("arena mapped privately", "memory-shared", _mapped_private),
    Fault("share=off, says the monitor", "memory-shared", _private_by_monitor),
    Fault("half of the memory has no file", "memory-regions", _node_missing),
    Fault("file of no power of two", "memory-size", _odd_file),
    Fault("master has more RAM", "memory-size", _larger_master),
    *CONFINED_FAULTS,
    Fault("master's chardev listens", "qemu-sockets", _server_on),
    Fault("master's chardev listens, old style", "qemu-sockets", _short_server),
    Fault("slave has the master's socket", "qemu-sockets", _swapped_sockets),
    Fault("front-end should listen", "qemu-sockets", _no_server),
    Fault("no master", "master", _no_master),
    Fault("front-end hangs", "master", _hanging_front_end),
    Fault("master does not connect again", "master-reconnect", _no_reconnect),
    Fault("guest may switch offloads", "master-offloads", _guest_offloads),
    Fault("features do not match", "master-features", _mismatch),
    Fault("carrier stays without an agent", "master-carrier", _keeps_carrier),
    Fault("memory is refused for good", "master-carrier", _refused_for_good),
    Fault("a ring's place is lost", "rings", _lost_ring),
    Fault("kicks are relayed", "kicks", _relayed_kicks),
    Fault("slave of an earlier daemon", "slave", _stale_slave),
    Fault("no slave", "slave", _no_slave),
    Fault("too few vectors", "slave-vectors", _few_vectors),
    Fault("vectors= forgotten", "slave-vectors", _default_vectors),
    Fault("agent sees too few vectors", "slave-vectors", _few_for_agent),
    Fault("no vIOMMU", "slave-viommu", _no_viommu),
    Fault("vIOMMU without intremap", "slave-viommu", _no_intremap),
    Fault("irqchip not split", "slave-viommu", _whole_irqchip),
    Fault("AMD's reserved hole", "slave-address-bits", _amd_hole),
    Fault("too few address bits", "slave-address-bits", _few_bits),
    Fault("a window is not plugged", "slave-root-ports", _not_plugged),
    Fault("root ports are too small", "slave-root-ports", _small_root_ports),
    Fault("agent failed", "agent", _failed_agent),
    Fault("no agent", "agent", _no_agent),
    Fault("agent hangs", "agent-heartbeat", _silent_agent),
    Fault("agent of an earlier version", "agent-version", _old_agent),
)
