# SPDX-License-Identifier: Apache-2.0
"""Checks of the TAPs, and of what other programs do with them."""

import re
from collections.abc import Iterator

from vhostpci_shared.findings import CannotLook, Seen, error, ok, warn
from vhostpci_shared.machine import Machine

from .slave import Link, Slave, each_link

_NET = "/sys/class/net"
_UP = 1
"""IFF_UP of the flags of an interface."""
_RANDOM = "1"
"""addr_assign_type of an address that the kernel has made (NET_ADDR_RANDOM)."""
_LINK_FILES = (
    "/etc/systemd/network",
    "/run/systemd/network",
    "/usr/lib/systemd/network",
    "/lib/systemd/network",
)
_CONFIGURED = {
    "/etc/systemd/network": r"^Name=(.*)$",
    "/etc/network": r"^(?:auto|allow-hotplug|iface)\s+(.*)$",
    "/etc/network/interfaces.d": r"^(?:auto|allow-hotplug|iface)\s+(.*)$",
    "/etc/NetworkManager/system-connections": r"^interface-name=(.*)$",
}
"""Where interfaces are configured by name, and the lines that name them."""


def _tap(slave: Slave, link: Link) -> str:
    """Return the directory of a link's TAP.

    Raises:
        CannotLook: it has none, or it is elsewhere.
    """
    if "socket" in link:
        raise CannotLook("a back-end has the packets: there is no TAP")
    if not link.get("tap"):
        raise CannotLook("there is no TAP yet")
    path = f"{_NET}/{link['tap']}"
    if not slave.machine.exists(path):
        raise CannotLook(f"{link['tap']} is in another network namespace")
    return path


@each_link
def up(slave: Slave, link: Link) -> Iterator[Seen]:
    """Look whether the TAP is up."""
    path = f"{_tap(slave, link)}/flags"
    if int(slave.machine.text(path), 16) & _UP:
        yield ok(path, f"{link['tap']} is up")
        return
    yield warn(
        path,
        f"{link['tap']} is down",
        means="what the master sends is thrown away",
        repair=f"ip link set {link['tap']} up",
    )


@each_link
def name(slave: Slave, link: Link) -> Iterator[Seen]:
    """Look whether a configuration waits for another name of the TAP."""
    _tap(slave, link)
    tap, wanted = link["tap"], link["name"]
    if tap == wanted or slave.machine.exists(f"{_NET}/{wanted}"):
        yield ok(f"{_NET}/{tap}", tap)
        return
    for path, names in _configured(slave.machine):
        if wanted in names and tap not in names:
            yield warn(
                path,
                f"it configures {wanted}, and the TAP is {tap}",
                means="the TAP was renamed, or --tap gives it another name: it gets no "
                "address from there",
                repair=f"{tap} in {path}, or --tap '{{name}}'",
            )
            return
    yield ok(f"{_NET}/{tap}", f"{tap} serves {wanted}")


def _configured(machine: Machine) -> Iterator[tuple[str, list[str]]]:
    """Yield files that configure interfaces, with the names in them."""
    for directory, pattern in _CONFIGURED.items():
        for entry in machine.names_if_there(directory):
            path = f"{directory}/{entry}"
            try:
                text = machine.text(path)
            except OSError:
                continue  # a directory, or for root alone
            found = re.findall(pattern, text, re.MULTILINE)
            yield path, [word for words in found for word in words.split()]


@each_link
def mac(slave: Slave, link: Link) -> Iterator[Seen]:
    """Look whether the TAP's MAC lasts, and no other interface here has it."""
    path = _tap(slave, link)
    address = slave.machine.text(f"{path}/address").strip()
    if slave.machine.text(f"{path}/addr_assign_type").strip() == _RANDOM:
        yield warn(
            f"{path}/addr_assign_type",
            f"{address} is random",
            means="another program has made the TAP: after each restart the master "
            "sends to the old MAC until its ARP entry expires",
            repair=f"vhostpci-guest run --mac {link['name'] or 'NAME'}={address}",
        )
        return
    others = _same_mac(slave.machine, link["tap"], address)
    if others:
        yield error(
            f"{path}/address",
            f"{', '.join(others)} has {address} as well",
            means="in one network the two cannot be told apart",
            repair=f"vhostpci-guest run --mac {link['name']}=02:00:00:00:00:01",
        )
        return
    yield ok(f"{path}/address", f"{address}{_policy(slave.machine)}")


def _same_mac(machine: Machine, tap: str, address: str) -> list[str]:
    """Return the interfaces with the MAC that are neither above nor below the TAP."""
    near = {
        one.partition("_")[2]
        for one in machine.names(f"{_NET}/{tap}")
        if one.startswith(("upper_", "lower_"))
    }
    return [
        other
        for other in machine.names(_NET)
        if other not in (tap, *near)
        and (machine.text_if_there(f"{_NET}/{other}/address") or "").strip() == address
    ]


def _policy(machine: Machine) -> str:
    """Return what udev would do with the MAC, for people."""
    for directory in _LINK_FILES:
        for entry in machine.names_if_there(directory):
            path = f"{directory}/{entry}"
            text = machine.text_if_there(path) if entry.endswith(".link") else None
            found = re.search(r"^MACAddressPolicy=(\S+)", text or "", re.MULTILINE)
            if found and found[1] != "none":
                return (
                    f"; {path} has MACAddressPolicy={found[1]}, which the agent undoes"
                )
    return ""


def clones(slave: Slave) -> Iterator[Seen]:
    """Look whether another machine may have the same MACs, as a copy of this one."""
    looked_at = "/etc/machine-id"
    identity = (slave.machine.text_if_there(looked_at) or "").strip()
    if not re.fullmatch("[0-9a-f]{32}", identity):
        yield warn(
            looked_at,
            f"{identity!r} is no machine-id",
            means="the TAPs' MACs change with each boot",
            repair="systemd-machine-id-setup (or dbus-uuidgen --ensure), and boot",
        )
        return
    ours = {
        (slave.machine.text_if_there(f"{_NET}/{link['tap']}/address") or "").strip()
        for link in slave.links
        if link.get("tap")
    } - {""}
    for line in (slave.machine.text_if_there("/proc/net/arp") or "").splitlines()[1:]:
        words = line.split()
        if len(words) > 3 and words[3] in ours:
            yield error(
                "/proc/net/arp",
                f"{words[0]} has {words[3]}, which is the MAC of a TAP here",
                means="that machine is a copy of this one, with the same machine-id",
                repair="give each copy another UUID (QEMU: -uuid), or: rm "
                "/etc/machine-id; systemd-machine-id-setup",
            )
            return
    uuid = slave.machine.exists("/sys/class/dmi/id/product_uuid")
    found = "and the VM has a UUID" if uuid else "and the VM has no UUID"
    yield ok(
        looked_at,
        f"it is there, {found}",
        means=""
        if uuid
        else "a copy of this VM has the same MACs, unless it gets a new machine-id, or "
        "each gets a UUID (QEMU: -uuid)",
    )
