# SPDX-License-Identifier: Apache-2.0
"""Checks of the masters' memory: that it is shared, and that there is room for it."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from vhostpci_shared.findings import CannotLook, Seen, error, look_safely, ok, warn

from ..config.commands import master_arguments
from ..interfaces import Json
from ..memory.room import Promise, shortages
from .command_line import CommandLine, is_on
from .hypervisor import Hypervisor, each_device, mib, process

_CONFINED = "a confined master shares a part of it alone: confined-memory looks at that"
_PEOPLE = range(1000, 60001)
"""The users who log in and out: UID_MIN and UID_MAX of login.defs(5)."""


def _status(device: Json) -> str:
    return f"vhostpci-host status {device['name']}"


def _arguments(device: Json) -> str:
    return (
        f"the memory arguments of `{master_arguments(device['name'], device['mode'])}`"
    )


def _share(device: Json) -> str:
    return f"share=on for each -object of its memory, as in {_arguments(device)}"


def room(host: Hypervisor) -> Iterator[Seen]:
    """Look whether the file systems have room for what the arenas may still take."""
    promises = list(_promises(host))
    if not promises:
        raise CannotLook("no device has an arena here")
    short = shortages(promises)
    for system, text in short.items():
        arenas = [one for one in promises if one.file_system == system]
        yield error(
            f"df {arenas[0].directory}",
            text.partition(":")[0],
            about=", ".join(one.name for one in arenas),
            means="a VM that touches memory when none is left is killed (SIGBUS)",
            repair=f"mount -o remount,size=... {arenas[0].directory}, or a separate "
            "tmpfs for --memory-dir, and --prealloc",
        )
    for one in promises:
        if one.file_system not in short:
            found = f"{mib(one.free)} free, and it may take {mib(one.missing)} more"
            yield ok(f"df {one.directory}", found, about=one.name)


def _promises(host: Hypervisor) -> Iterator[Promise]:
    for device in host.served:
        memory = device["memory"]
        info = memory["path"] and host.machine.info_if_there(memory["path"])
        if info:
            yield Promise(
                name=device["name"],
                directory=Path(memory["path"]).parent,
                file_system=info.inode[0],
                missing=max(0, memory["size"] - info.allocated),
                free=host.machine.free(memory["path"]),
            )


@each_device
def place(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether the path of the arena leads to the file that the daemon has."""
    memory = device["memory"]
    if memory["path"] is None:
        raise CannotLook("in attach mode the memory is the master's")
    if memory.get("file") is None:
        raise CannotLook("the daemon is of an earlier version, which does not say it")
    info = host.machine.info_if_there(memory["path"])
    if info and info.inode == (memory["file"]["device"], memory["file"]["inode"]):
        yield ok(memory["path"], "it is the daemon's file")
        return
    yield error(
        memory["path"],
        "it is another file" if info else "it is not there",
        means="another process has removed or replaced the arena: a master that starts "
        "now gets other memory than the daemon shows to the slave",
        repair="restart master and daemon at a good time; keep the arena where nothing "
        "cleans up (RemoveIPC=no in logind.conf, or a separate tmpfs for "
        "--memory-dir)",
    )


@each_device
def shared(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether all of the master's memory is shared."""
    if device["master"] is None:
        raise CannotLook("no master is connected")
    problem = device["master"]["problem"]
    if device["state"].startswith("master's memory is") or problem:
        yield error(
            _status(device),
            f"{device['state']}{f': {problem}' if problem else ''}",
            means="the slave cannot see the master's packets",
            repair=f"start the master with {_arguments(device)}",
        )
        return
    if device.get("confined"):
        raise CannotLook(_CONFINED)
    if host.memdevs is not None:
        yield from _memdevs(device, host.memdevs())
        return
    pid, line = host.peer_line(device, "master")
    for backend in _memory_backends(line):
        if not is_on(backend, "share", _default_share(backend)):
            yield error(
                f"{process(pid)}/cmdline",
                f"memory {backend.get('id', '?')} is without share=on",
                means="QEMU has a private copy of it, which the slave cannot see",
                repair=_share(device),
            )
            return
    yield from look_safely(lambda: _mapped(host, device, pid))


def _memory_backends(line: CommandLine) -> list[dict[str, str]]:
    return [
        dict(one)
        for one in line.all("object")
        if one.get("qom-type", "").startswith("memory-backend-")
    ]


def _default_share(backend: dict[str, str]) -> str:
    # QEMU, qapi/qom.json: a memfd is shared unless it is said otherwise.
    return "on" if backend.get("qom-type") == "memory-backend-memfd" else "off"


def _memdevs(device: Json, found: list[Json]) -> Iterator[Seen]:
    """Judge what QEMU answers to `query-memdev`."""
    private = [str(one.get("id", "?")) for one in found if not one.get("share")]
    if not private:
        yield ok("query-memdev", f"all {len(found)} memory backends are shared")
        return
    yield error(
        "query-memdev",
        f"memory {', '.join(private)} is not shared",
        means="QEMU has a private copy of it, which the slave cannot see",
        repair=_share(device),
    )


def _mapped(host: Hypervisor, device: Json, pid: int) -> Iterator[Seen]:
    """Look how the master maps the arena."""
    looked_at = f"{process(pid)}/maps"
    path = device["memory"]["path"]
    if path is None:
        yield ok(f"{process(pid)}/cmdline", "all its memory backends are shared")
        return
    lines = host.machine.text(looked_at).splitlines()
    rights = [one.split()[1] for one in lines if one.endswith(f" {path}")]
    if any(one.endswith("s") for one in rights):
        yield ok(looked_at, "the master maps the arena, shared")
        return
    found = "the master maps the arena privately" if rights else "it maps no arena"
    yield error(
        looked_at,
        found,
        means="its packets are in memory that the slave does not see",
        repair=f"start the master with {_arguments(device)}",
    )


@each_device
def regions(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether the front-end has sent a file for all of its memory."""
    if device["master"] is None:
        raise CannotLook("no master is connected")
    if device.get("confined"):
        raise CannotLook(_CONFINED)
    pid, line = host.peer_line(device, "master")
    if line.memory is None:
        raise CannotLook(f"{process(pid)}/cmdline has no -m that we understand")
    found = sum(one["size"] for one in device["master"]["regions"])
    text = f"{mib(found)} in regions, {mib(line.memory)} in -m"
    looked_at = f"vhostpci-host status {device['name']}, {process(pid)}/cmdline"
    # QEMU leaves the memory out that legacy video and firmware cover: less than 1 MiB.
    if found + (1 << 20) >= line.memory:
        yield ok(looked_at, text)
        return
    yield error(
        looked_at,
        text,
        means="a part of the memory has no file that the slave could map, such as one "
        "NUMA node: packets there do not cross",
        repair="share=on for each -object of its memory, and memory-backend= for all",
    )


@each_device
def size(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether the memory fits the slave's window."""
    looked_at = f"vhostpci-host status {device['name']}"
    memory, plugs = device["memory"], device["plugging"] is not None
    sizes = [one["size"] for one in device["windows"]]
    odd = [one for one in sizes if one & (one - 1)]
    if odd and plugs:
        yield error(
            looked_at,
            f"a memory file of {mib(odd[0])}, which is no power of two",
            means="a slave VM's windows have sizes that are powers of two, and QEMU "
            "aborts on any other",
            repair="give the master a memory whose size is a power of two (a slave "
            "process takes any)",
        )
        return
    master = device["master"]
    if memory["size"] and master is not None:
        last = max(
            (one["offset"] + one["size"] for one in master["regions"]), default=0
        )
        if last > memory["size"]:
            yield error(
                looked_at,
                f"the master has {mib(last)}, and the device {mib(memory['size'])}",
                means="the master's RAM reaches into the metadata, so nothing is "
                "written there, and the slave is not served",
                repair="start the master with the device's size (-m and size=), or "
                "serve the device with the master's",
            )
            return
    yield ok(looked_at, f"BAR 2 of {mib(max([memory['window'], *sizes]))}")


def huge_pages(host: Hypervisor) -> Iterator[Seen]:
    """Look at huge pages, which are not needed."""
    looked_at = "/proc/meminfo"
    values = {}
    for line in host.machine.text(looked_at).splitlines():
        name, _, rest = line.partition(":")
        values[name] = int(rest.split()[0]) if rest.split() else 0
    total, free = values.get("HugePages_Total", 0), values.get("HugePages_Free", 0)
    left = free * values.get("Hugepagesize", 0) << 10
    found = f"{total} huge pages, {free} free"
    for one in host.served:
        memory = one["memory"]
        if memory["filesystem"] != "hugetlbfs" or one["slave"] is not None:
            continue
        if left < memory["window"] - memory["size"]:
            yield warn(
                looked_at,
                found,
                about=one["name"],
                means="on hugetlbfs a slave's QEMU reserves the whole window, of "
                f"{mib(memory['window'])}, and there are not enough pages for that",
                repair="sysctl vm.nr_hugepages=..., RAM of a power of two less one "
                "huge page, or --memory-dir on tmpfs",
            )
            return
    yield ok(looked_at, f"{found}; vhostpci needs none")


@each_device
def cleanup(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether logind removes the arena when a user logs out."""
    path = device["memory"]["path"]
    if path is None:
        raise CannotLook("in attach mode the memory is the master's")
    owner = host.machine.info(process(device["daemon"]["pid"])).uid
    if (
        PurePosixPath("/dev/shm") not in PurePosixPath(path).parents
        or owner not in _PEOPLE
    ):
        yield ok(path, f"of uid {owner}: nothing cleans up there")
        return
    looked_at = "/etc/systemd/logind.conf"
    text = host.machine.text_if_there(looked_at) or ""
    if "RemoveIPC=no" in text.replace(" ", "").splitlines():
        yield ok(looked_at, "RemoveIPC=no")
        return
    yield warn(
        looked_at,
        f"RemoveIPC=yes, the default, and the daemon is a person's (uid {owner})",
        means="logind removes that user's files from /dev/shm at the last log-out, "
        "the arena among them",
        repair="RemoveIPC=no there, --memory-dir on a separate tmpfs, or a system user "
        "for the daemon",
    )
