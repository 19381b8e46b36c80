# SPDX-License-Identifier: Apache-2.0
"""TAPs that an agent has left, because it was killed or was told to keep them.

A TAP that the agent makes is persistent: if the agent is killed, the kernel keeps it,
with its addresses, routes and bridge, and without a carrier.  Its alias, which
`ip link show` shows, says for which device it is.  So the next agent finds it, whatever
its name.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from ..errors import Unusable
from .netlink import netlink

ALIAS = "vhostpci-guest"
"""The first word of the alias, behind which comes the mark."""
ALIAS_MAX = 255  # bytes: IFALIASZ without the NUL at the end
_PLACE = re.compile(r"(.*) at [0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", re.DOTALL)
"""An alias with the PCI address behind it, where the device was then."""


@dataclass(frozen=True, slots=True)
class LeftTap:
    """A TAP that an agent made, in our network namespace."""

    index: int
    name: str
    alias: str
    several: bool
    """Whether it is one for several queues; no process has one of these open."""


def mark(device: str, name: str) -> str:
    """Return what tells the TAPs of devices apart, also for the next agent.

    Args:
        device: the device's PCI address, or the path of its socket.
        name: the device's name in the metadata.
    """
    # Without the PCI address: a device that is plugged again may get another one.  The
    # path tells apart the devices of two daemons that have the same name.
    return f"{name} {device}" if "/" in device else name


def alias(text: str, device: str = "") -> str:
    """Return the alias of the TAP with this mark.

    Args:
        text: the mark.
        device: the device's PCI address or path, which people are shown.
    """
    # A path is in the mark already.
    place = f" at {device}" if device and "/" not in device else ""
    whole = f"{ALIAS} {text}{place}"
    return whole.encode()[:ALIAS_MAX].decode(errors="ignore")


def find(text: str) -> LeftTap | None:
    """Return the TAP that an agent has left with this mark; None if there is none.

    One with a single queue may be open: the kernel tells only who attaches to it.

    Raises:
        Unusable: the kernel does not list the interfaces.
    """
    wanted = alias(text)
    return next(
        (tap for tap in find_all() if _without_place(tap.alias) == wanted), None
    )


def _without_place(alias: str) -> str:
    # A device that is plugged again may have another address.  Earlier versions wrote
    # none.
    found = _PLACE.fullmatch(alias)
    return found[1] if found else alias


def find_all() -> Iterator[LeftTap]:
    """Yield the TAPs that agents have left.

    Raises:
        Unusable: the kernel does not list the interfaces.
    """
    with netlink("TAPs", "to list them") as ip:
        for link in ip.get_links():
            said = link.get_attr("IFLA_IFALIAS") or ""
            if not said.startswith(f"{ALIAS} "):
                continue
            if link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") != "tun":
                continue
            data = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
            # A TAP with a single queue has no such number.
            if data.get_attr("IFLA_TUN_NUM_QUEUES"):
                continue
            several = bool(data.get_attr("IFLA_TUN_MULTI_QUEUE"))
            name = link.get_attr("IFLA_IFNAME")
            yield LeftTap(link["index"], name, said, several)


def remove(index: int) -> None:
    """Remove a TAP; a no-op if another program has done so."""
    with suppress(Unusable), netlink(f"TAP {index}", "to remove it") as ip:
        ip.link("del", index=index)
