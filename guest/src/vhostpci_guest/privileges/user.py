# SPDX-License-Identifier: Apache-2.0
"""The user that the agent becomes once what needs root is done."""

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from vhostpci_shared.errors import BadValue

OWN = "vhostpci-guest"
"""The user for the agent alone, if this machine has it."""
NOBODY = 65534
"""User and group of `nobody` on any Linux, whether /etc/passwd has it or not."""


@dataclass(frozen=True, slots=True)
class User:
    """A user, with its groups."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def become(self) -> None:
        """Become this user, in all threads of the process.

        Raises:
            OSError: we may not.
        """
        # The groups first: afterwards we may not.
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)


def parse_user(text: str) -> User:
    """Return a user by name or number.

    Raises:
        BadValue: there is no such user.
    """
    try:
        number = text.isascii() and text.isdecimal()
        found = pwd.getpwuid(int(text)) if number else pwd.getpwnam(text)
    except (KeyError, OverflowError):
        raise BadValue(f"this machine has no user {text!r}", code="G097") from None
    return _user(found)


def default_user() -> User:
    """Return the user of an agent that serves PCI devices."""
    try:
        return _user(pwd.getpwnam(OWN))
    except KeyError:
        return User("nobody", NOBODY, NOBODY)


def owner(socket: Path) -> User | None:
    """Return the owner of a daemon's socket, or of its directory while there is none.

    None if there is neither, or we may not look.
    """
    for path in (socket, socket.parent):
        try:
            status = path.stat()
        except OSError:
            continue
        try:
            return _user(pwd.getpwuid(status.st_uid))
        except KeyError:  # a user of another container
            return User(str(status.st_uid), status.st_uid, status.st_gid)
    return None


def _user(entry: pwd.struct_passwd) -> User:
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, tuple(groups))
