# SPDX-License-Identifier: Apache-2.0
"""What this machine knows of the processes that the daemon names by their PIDs.

The command line looks here, and not the daemon, which has no need to read of other
processes.  A VM's user chooses its name: it is only shown.
"""

import json
import os
import time
from itertools import pairwise
from typing import Any, NamedTuple

from ..interfaces import Json

_MOST = 1 << 20
"""Bytes of a command line that are read; QEMU's has some ten thousand."""


class Vm(NamedTuple):
    """One process: a QEMU, or another front-end or slave."""

    name: str | None = None
    """QEMU's `-name`, else the program's; None if there is no such process here."""
    started: float | None = None
    """When it started, in seconds since 1970."""
    words: tuple[str, ...] = ()
    """Its command line."""

    def mac(self, socket: str) -> str | None:
        """Return the MAC address of QEMU's card at a vhost-user socket."""
        chardevs = [
            one["id"]
            for one in _options(self.words, "-chardev")
            if socket in (one.get("path"), _dig(one, "backend", "data", "addr", "path"))
        ]
        netdevs = [
            one.get("id")
            for one in _options(self.words, "-netdev")
            if one.get("chardev") in chardevs
        ]
        for card in _options(self.words, "-device"):
            if card.get("netdev") in netdevs and "mac" in card:
                return str(card["mac"])
        return None


def look(pid: int | None) -> Vm:
    """Return what is known of a process."""
    if not pid:
        return Vm()
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            text = file.read(_MOST).decode(errors="replace")
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read(_MOST).decode(errors="replace")
    except OSError:
        return Vm()  # it has ended, or this user may not see it
    words = tuple(text.split("\0"))
    # proc_pid_stat(5): the second field is the name in brackets, which may have both
    # spaces and brackets in it.
    name, _, rest = stat.partition("(")[2].rpartition(")")
    return Vm(_guest(words) or name, _start(rest.split()), words)


def add_to(status: Json) -> Json:
    """Return a device's status with what is known of its master and its slave."""
    found = dict(status)
    socket = (status.get("sockets") or {}).get("vhost_user", "")
    for role in ("master", "slave"):
        if one := status.get(role):
            vm = look(one["pid"])
            found[role] = {**one, "name": vm.name, "started": vm.started}
            if role == "master":
                found[role]["mac"] = vm.mac(socket)
    return found


def add_names(row: Json) -> Json:
    """Return a row of `list` with the names of its master and its slave."""
    names = {
        f"{role}_name": look(row.get(f"{role}_pid")).name
        for role in ("master", "slave")
    }
    return {**row, **names}


def _guest(words: tuple[str, ...]) -> str | None:
    """Return the name that QEMU was given: `-name web` or `-name guest=web,...`."""
    for one in _options(words, "-name"):
        name = one.get("guest") or one.get("")
        if name:
            return str(name)
    return None


def _options(words: tuple[str, ...], option: str) -> list[dict[str, Any]]:
    """Return the values of each such option of QEMU's, which has two forms of them."""
    found = []
    for word, value in pairwise(words):
        if word in (option, f"-{option}"):
            one = _json(value) if value.startswith("{") else _pairs(value)
            if isinstance(one.get("id", ""), str):
                found.append({"id": "", **one})
    return found


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _pairs(text: str) -> dict[str, Any]:
    """Return `kind,key=value,...` as a dict; the kind has the key ""."""
    found = {}
    # A comma in a value is doubled.
    for part in text.replace(",,", "\0").split(","):
        key, equals, value = part.replace("\0", ",").partition("=")
        found[key if equals else ""] = value if equals else key
    return found


def _dig(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _start(fields: list[str]) -> float | None:
    """Return when a process started, by its fields from the state (field 3) on."""
    try:
        ticks = int(fields[19])  # field 22, starttime
    except (IndexError, ValueError):
        return None
    after_boot = ticks / os.sysconf("SC_CLK_TCK")
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return round(booted + after_boot, 1)
