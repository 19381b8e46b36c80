# SPDX-License-Identifier: Apache-2.0
"""The user as whom libvirt runs QEMUs, and what that user may do."""

import re
import stat
from dataclasses import dataclass

from vhostpci_shared.machine import FileInfo, Machine

_NAMES = ("libvirt-qemu", "qemu")
"""Debian's and Ubuntu's, and Fedora's."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user of this machine, by /etc/passwd and /etc/group."""

    name: str
    uid: int
    groups: frozenset[int]

    def may(self, info: FileInfo, bits: int) -> bool:
        """Whether the user has all these rights, given as those of other users."""
        if self.uid == 0:
            return True
        # The owner's bits are 6 higher, and the group's 3 (stat(2)).  The first that
        # applies decides alone.
        if info.uid == self.uid:
            return stat.S_IMODE(info.mode) >> 6 & bits == bits
        if info.gid in self.groups:
            return stat.S_IMODE(info.mode) >> 3 & bits == bits
        return info.mode & bits == bits


def qemu_account(machine: Machine) -> Account | None:
    """Return the user who runs libvirt's QEMUs; None if there is none."""
    configured = _configured(machine)
    users = dict(_users(machine))
    for name in (configured,) if configured else _NAMES:
        if name in users:
            uid, gid = users[name]
            return Account(name, uid, frozenset({gid, *_groups(machine, name)}))
    return None


def _configured(machine: Machine) -> str | None:
    """Return the user that /etc/libvirt/qemu.conf names."""
    try:
        text = machine.text_if_there("/etc/libvirt/qemu.conf") or ""
    except PermissionError:
        return None  # Debian gives the file to root alone; its default holds then
    found = re.search(r'^\s*user\s*=\s*"\+?([^"]+)"', text, re.MULTILINE)
    return found and found[1]


def _users(machine: Machine) -> list[tuple[str, tuple[int, int]]]:
    found = []
    for line in (machine.text_if_there("/etc/passwd") or "").splitlines():
        name, _, uid, gid, *_ = (*line.split(":"), "", "", "")
        if uid.isdecimal() and gid.isdecimal():
            found.append((name, (int(uid), int(gid))))
    return found


def _groups(machine: Machine, user: str) -> list[int]:
    found = []
    for line in (machine.text_if_there("/etc/group") or "").splitlines():
        _, _, gid, members, *_ = (*line.split(":"), "", "", "")
        if gid.isdecimal() and user in members.split(","):
            found.append(int(gid))
    return found
