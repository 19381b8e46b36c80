# SPDX-License-Identifier: Apache-2.0
"""Checks of sockets and directories: where they are, and who may use them."""

import os
import stat
from collections.abc import Iterator
from pathlib import PurePosixPath

from vhostpci_shared import metadata as md
from vhostpci_shared.findings import CannotLook, Seen, error, ok, warn
from vhostpci_shared.machine import FileInfo, Machine

from ..config.device import MAX_SUN_PATH
from ..interfaces import Json
from .accounts import Account, qemu_account
from .hypervisor import Hypervisor, each_device

_WIDTH = 60
"""Characters of a line of the kernel's log that are shown from where it matters."""


@each_device
def path_length(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether QEMU can name all sockets."""
    longest = max(
        *device["sockets"].values(),
        f"{device['sockets']['ivshmem']}.{md.LAST_WINDOW}",
        key=lambda path: len(os.fsencode(path)),
    )
    size = len(os.fsencode(longest))
    found = f"{size} bytes of {MAX_SUN_PATH}"
    if size <= MAX_SUN_PATH:
        yield ok(longest, found)
        return
    yield error(
        longest,
        found,
        means="no program can connect to a socket with such a path",
        repair="a shorter --run-dir, --socket-path or name",
    )


@each_device
def place(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether the paths of the sockets lead to the daemon."""
    files = device.get("socket_files")
    if files is None:
        raise CannotLook("the daemon is of an earlier version, which does not say it")
    for one in files:
        path = one["path"]
        info = host.machine.info_if_there(path)
        if info is not None and info.inode == (one["device"], one["inode"]):
            yield ok(path, "it is the daemon's socket")
            continue
        if info is None:
            found = "it is not there"
        elif stat.S_ISSOCK(info.mode):
            found = f"it is another socket, of {_owner(info)}"
        else:
            found = f"it is no socket, but a file of {_owner(info)}"
        yield error(
            path,
            found,
            means="another process has removed or replaced it, and a QEMU that starts "
            "now does not reach the daemon",
            repair="a QEMU with server=on in its chardev does that: server=off "
            "(libvirt: mode='client').  The daemon listens there again within half a "
            f"minute; if it does not, rm {path}",
        )


def _owner(info: FileInfo) -> str:
    return f"uid {info.uid}"


@each_device
def access(host: Hypervisor, device: Json) -> Iterator[Seen]:
    """Look whether libvirt's QEMUs may use the sockets and the memory."""
    account = qemu_account(host.machine)
    if account is None:
        raise CannotLook("libvirt is not installed, so QEMUs run as who starts them")
    used = (device["plugging"] or {}).get("slave") or ""
    # A slave's QEMU is libvirt's for sure if the daemon plugs through libvirt.  Of any
    # other QEMU only its owner knows who will start it.
    certain = bool(used) and not used.startswith("/")
    if not certain and device["master"] and device["slave"]:
        yield ok(device["sockets"]["vhost_user"], "master and slave are connected")
        return
    paths = [device["sockets"]["vhost_user"], device["sockets"]["ivshmem"]]
    if device["memory"]["path"] is not None:
        paths.append(device["memory"]["path"])
    for path in paths:
        yield from _access(host, device, path, account, certain=certain)


def _access(
    host: Hypervisor, device: Json, path: str, account: Account, *, certain: bool
) -> Iterator[Seen]:
    info = host.machine.info_if_there(path)
    if info is None:
        return  # `socket-place` and `memory-place` say so
    closed = next(
        (
            str(parent)
            for parent in reversed(PurePosixPath(path).parents)
            if not account.may(host.machine.info(str(parent)), stat.S_IXOTH)
        ),
        None,
    )
    if closed is None and account.may(info, stat.S_IROTH | stat.S_IWOTH):
        yield ok(path, f"{account.name} may use it")
        return
    found = f"{account.name}, who runs libvirt's QEMUs, may not use it"
    if closed is not None:
        found += f": {closed} is closed to that user"
        repair = f"chmod o+x {closed}"
    else:
        found += f" (uid {info.uid}, gid {info.gid}, mode {info.access:04o})"
        repair = (
            f"serve {device['name']} with --socket-group {account.name} "
            "--socket-mode 0660"
        )
    means = "a VM of libvirt's cannot be this device's master or slave"
    yield (error if certain else warn)(path, found, means=means, repair=repair)


def writers(host: Hypervisor) -> Iterator[Seen]:
    """Look who else could put files into the place of sockets and memory."""
    for path, owner in sorted(_directories(host)):
        said = False
        for parent in (*reversed(PurePosixPath(path).parents), PurePosixPath(path)):
            info = host.machine.info_if_there(str(parent))
            why = info and _why_open(info, owner)
            if why:
                said = True
                yield error(
                    str(parent),
                    why,
                    means="another user could replace the sockets or the memory, and "
                    "be given the master's packets and memory",
                    repair=f"chmod go-w {parent}; chown root {parent}; or another "
                    "--run-dir or --memory-dir",
                )
        if not said:
            yield ok(path, f"only {_who(owner)} may replace files in it")


def _who(owner: int) -> str:
    return f"root and uid {owner}" if owner else "root"


def _directories(host: Hypervisor) -> set[tuple[str, int]]:
    """Return all directories of the devices, with the user of the daemon."""
    found = set()
    for one in host.served:
        owner = host.machine.info(f"/proc/{one['daemon']['pid']}").uid
        paths = [*one["sockets"].values(), one["memory"]["path"]]
        found |= {(str(PurePosixPath(path).parent), owner) for path in paths if path}
    if not found:
        raise CannotLook("no daemon here has told us of a device")
    return found


def _why_open(info: FileInfo, owner: int) -> str:
    """Return why other users may replace what is in a directory; empty if none may."""
    if info.uid not in (0, owner):
        return f"it belongs to uid {info.uid}"
    # In a sticky directory, as /tmp, only a file's owner may replace it.
    if info.mode & stat.S_ISVTX:
        return ""
    if info.mode & stat.S_IWOTH:
        return f"its mode {info.access:04o} lets all users write"
    if info.mode & stat.S_IWGRP and info.gid not in (0, owner):
        return f"its mode {info.access:04o} lets group {info.gid} write"
    return ""


def denials(host: Hypervisor) -> Iterator[Seen]:
    """Look whether AppArmor or SELinux has refused what the VMs need."""
    looked_at, text = _kernel_log(host.machine)
    marks = ("vhostpci", host.run_dir, *(path for path, _ in _own_directories(host)))
    found = [
        line
        for line in text.splitlines()
        if ('apparmor="DENIED"' in line or "avc:  denied" in line)
        and any(mark in line for mark in marks)
    ]
    if not found:
        yield ok(looked_at, "no denial about a file of ours since the machine started")
        return
    last = found[-1]
    start = max(last.find("apparmor="), last.find("avc:"), 0)
    yield error(
        looked_at,
        f"{len(found)} denials; the last: {last[start : start + 4 * _WIDTH]}",
        means="the profile of a QEMU or of the daemon forbids what it needs, whatever "
        "the file's mode says",
        repair='docs/plugging.md, "With libvirt", has the lines for AppArmor '
        "(/etc/apparmor.d/local/abstractions/libvirt-qemu); for SELinux see "
        "ausearch -m avc | audit2why",
    )


def _own_directories(host: Hypervisor) -> set[tuple[str, int]]:
    try:
        return _directories(host)
    except (CannotLook, OSError):
        return set()


def _kernel_log(machine: Machine) -> tuple[str, str]:
    """Return where the kernel's log was read, and its lines.

    Raises:
        CannotLook: this user may not read it.
    """
    reasons = []
    for command in (
        ("journalctl", "-k", "-b", "-q", "-o", "cat", "-n", "20000"),
        ("dmesg",),
    ):
        try:
            said = machine.run(*command)
        except CannotLook as why:
            reasons.append(str(why))
            continue
        # journalctl succeeds with no line where there is no journal, or none for us.
        if said.status == 0 and said.out.strip():
            return " ".join(command), said.out
        reasons.append(said.error.strip() or f"{command[0]} prints nothing")
    raise CannotLook(f"the kernel's log cannot be read: {'; '.join(reasons)}")
