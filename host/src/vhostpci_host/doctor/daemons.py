# SPDX-License-Identifier: Apache-2.0
"""Checks of the daemons, and of what the kernel allows them."""

from collections.abc import Iterator
from functools import partial

from vhostpci_shared.findings import (
    CannotLook,
    Seen,
    error,
    look_safely,
    ok,
    skipped,
    warn,
)
from vhostpci_shared.systemd_unit import look_at_unit

from ..interfaces import FAILED, Json
from .hypervisor import Hypervisor, each_device, mib, process

_FULL = 0.8
"""The part of a limit whose use is worth a warning."""


def answers(host: Hypervisor) -> Iterator[Seen]:
    """Look whether each daemon answers at its control socket."""
    for silent in host.silent:
        if silent.forbidden:
            yield skipped(silent.why, about=silent.path)
            continue
        if silent.killed:
            repair = f"start the daemon again, or delete {silent.path}"
            means = "a daemon that was killed has left the socket"
        else:
            repair = "look at its log, and at the user who runs it"
            means = "its devices are not looked at here"
        yield error(silent.path, silent.why, means=means, repair=repair)
    if host.silent:
        return
    pids = sorted({one["daemon"]["pid"] for one in host.served})
    if not pids:
        yield error(
            f"{host.run_dir}/*.control",
            "no daemon serves a device",
            means="no VM can be a master or a slave",
            repair="vhostpci-host run NAME --memory SIZE, or systemctl start "
            "vhostpci-host; --run-dir says where else to look",
        )
        return
    yield ok(f"{host.run_dir}/*.control", f"pid {', '.join(map(str, pids))} answers")


def failed(host: Hypervisor) -> Iterator[Seen]:
    """Look whether all devices are served."""
    if not host.devices:
        raise CannotLook("no daemon here has told us of a device")
    for one in host.devices:
        name = one["name"]
        if one["state"] == FAILED:
            yield error(
                f"vhostpci-host status {name}",
                f"failed: {one['reason']}",
                about=name,
                means="the daemon serves its other devices, and not this one",
                repair=f"repair that; then vhostpci-host remove {name}, and add {name}",
            )
        else:
            yield ok(f"vhostpci-host status {name}", one["state"], about=name)


def version(host: Hypervisor) -> Iterator[Seen]:
    """Look whether the daemons are those that are installed."""
    # Any of its devices, whose socket takes `restart` whichever daemon that is.
    daemons = {
        (one["daemon"]["pid"], one["daemon"]["version"]): one["name"]
        for one in host.served
    }
    for (pid, running), name in sorted(daemons.items()):
        looked_at, about = "vhostpci-host status", f"pid {pid}"
        if running == host.version:
            yield ok(looked_at, f"{running}, as installed", about=about)
        else:
            yield warn(
                looked_at,
                f"it runs {running}, and {host.version} is installed",
                about=about,
                means="it was not restarted since the last upgrade",
                repair=f"vhostpci-host restart {name} (masters and slaves "
                "notice nothing)",
            )


def descriptors(host: Hypervisor) -> Iterator[Seen]:
    """Look whether daemons and the machine have descriptors left."""
    yield from look_safely(partial(_machine_descriptors, host))
    for pid in sorted({one["daemon"]["pid"] for one in host.served}):
        yield from look_safely(partial(_own, host, pid), f"pid {pid}")


def _machine_descriptors(host: Hypervisor) -> Iterator[Seen]:
    path = "/proc/sys/fs/file-nr"
    used, _, most = map(int, host.machine.text(path).split())
    found = f"{used} of {most} on this machine"
    if used < _FULL * most:
        yield ok(path, found)
        return
    yield warn(
        path,
        found,
        means="when none is left, no program here can open a file or a connection",
        repair=f"sysctl fs.file-max={2 * most}",
    )


def _own(host: Hypervisor, pid: int) -> Iterator[Seen]:
    about = f"pid {pid}"
    used = len(host.machine.names(f"/proc/{pid}/fd"))
    most = host.machine.limit(pid, "Max open files")
    looked_at, found = f"/proc/{pid}/limits", f"{used} of {most or 'unlimited'}"
    if most is None or used < _FULL * most:
        yield ok(looked_at, found, about=about)
        return
    yield warn(
        looked_at,
        found,
        about=about,
        means="without descriptors a daemon takes no further master, slave or window",
        repair="LimitNOFILE= in its unit (systemctl edit vhostpci-host), or ulimit -n",
    )


def unit(host: Hypervisor) -> Iterator[Seen]:
    """Look whether systemd finds the program and the user that its unit names."""
    yield from look_at_unit(host.machine, "vhostpci-host.service", host.program)


@each_device
def cgroup(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether a control group leaves the master its memory."""
    pid = (device["master"] or {}).get("pid") or device["daemon"]["pid"]
    need = device["memory"]["size"]
    looked_at = f"/proc/{pid}/cgroup"
    if not need:
        raise CannotLook("in attach mode the memory is the master's")
    path, limit = _smallest_limit(host, pid)
    if limit is None or limit >= need:
        found = "no limit" if limit is None else f"{mib(limit)} at {path}"
        yield ok(looked_at, found)
        return
    yield error(
        path,
        f"{mib(limit)}, and the device's memory has {mib(need)}",
        means=f"pid {pid} is killed when it has touched that much",
        repair=f"MemoryMax= of its unit, or echo {need * 2} > {path}",
    )


def _smallest_limit(host: Hypervisor, pid: int) -> tuple[str, int | None]:
    """Return the file with the smallest limit of memory above a process."""
    group = ""
    for line in host.machine.text(f"/proc/{pid}/cgroup").splitlines():
        number, _, rest = line.partition(":")
        if number == "0":  # cgroup v2; v1 has one line for each controller
            group = rest.partition(":")[2].rstrip("/")
    found: tuple[str, int | None] = "", None
    while group:
        path = f"/sys/fs/cgroup{group}/memory.max"
        text = (host.machine.text_if_there(path) or "max").strip()
        if text.isdecimal() and (found[1] is None or int(text) < found[1]):
            found = path, int(text)
        group = group.rpartition("/")[0]
    return found


@each_device
def locked_memory(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether a QEMU that locks its memory may do so."""
    looked = False
    for role in ("master", "slave"):
        if device[role] is None:
            continue
        pid, line = host.peer_line(device, role)
        locks = any(one.get("mem-lock") == "on" for one in line.all("overcommit"))
        locks |= any(True for _ in line.devices("vfio-pci"))
        looked_at, looked = f"{process(pid)}/limits", True
        if not locks or line.memory is None:
            yield ok(looked_at, f"the {role} locks no memory: no limit matters")
            continue
        most = host.machine.limit(pid, "Max locked memory")
        if most is None or most >= line.memory:
            yield ok(looked_at, f"the {role} may lock its memory")
            continue
        yield error(
            looked_at,
            f"the {role} may lock {mib(most)}, and has {mib(line.memory)}",
            means="it locks all its memory (mem-lock=on, vfio-pci), and fails",
            repair="LimitMEMLOCK= of its unit; libvirt: <hard_limit> in <memtune>",
        )
    if not looked:
        raise CannotLook("neither a master nor a slave is connected")
