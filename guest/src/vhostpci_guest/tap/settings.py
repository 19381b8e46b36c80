# SPDX-License-Identifier: Apache-2.0
"""The settings of a TAP: what a user may write for each, and the MAC that is chosen.

What the kernel would refuse is refused here, when the agent starts, and not when a
device comes.
"""

import hashlib
import ipaddress
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vhostpci_shared.errors import BadValue

# The kernel's limits for a TAP: the smallest MTU of IPv4, and 65535 less the 14 bytes
# of an Ethernet header.
MTU_MIN, MTU_MAX = 68, 65521
NAME_MAX = 15  # bytes: IFNAMSIZ without the NUL at the end

# A container may have no machine-id.  The boot ID then keeps the MACs until a reboot.
_MACHINE = (Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id"))
# VMs that are copies of one disk have one machine-id.  libvirt gives each another UUID.
_PRODUCT_UUID = Path("/sys/class/dmi/id/product_uuid")

_remembered: list[tuple[str, str]] = []
"""What `remember_machine` has read."""

Address = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class TapConfig:
    """The settings of one TAP; None leaves a setting to the kernel or the master."""

    name: str | None = None
    mac: str | None = None
    mtu: int | None = None
    addresses: tuple[Address, ...] = field(default=())


def parse_name(text: str) -> str:
    """Return an interface name, or a pattern of one with a single ``%d``.

    Raises:
        BadValue: the kernel would refuse the name.
    """
    # The kernel puts the first free number in the place of "%d".
    plain = text.replace("%d", "", 1)
    if not is_name(plain) or len(text) > NAME_MAX:
        raise BadValue(
            f"{text!r} is no interface name: 1 to {NAME_MAX} characters, no slash, "
            "colon, space or percent sign",
            code="G135",
        )
    return text


def is_name(text: str) -> bool:
    """Return whether the kernel accepts `text` as the name of an interface."""
    usable = re.fullmatch(r"[^\s/:%]+", text) and len(text.encode()) <= NAME_MAX
    return bool(usable) and text.isprintable() and text not in (".", "..")


def parse_mac(text: str) -> str:
    """Return a unicast MAC address in lower case.

    Raises:
        BadValue: `text` is not a unicast MAC address.
    """
    mac = text.lower()
    if not re.fullmatch(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", mac):
        raise BadValue(f"{text!r} is no MAC address, as 02:00:00:00:00:01", code="G136")
    # The lowest bit of the first byte marks a group address.  The kernel refuses those
    # and zero for an interface: fail at the start, not when a device comes.
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise BadValue(
            f"{text!r} is a multicast or the zero address: a card needs a unicast MAC",
            code="G137",
        )
    return mac


def stable_mac(*what: str) -> str:
    """Return a MAC that depends on this machine and on `what` only."""
    # The kernel would give each new TAP a random MAC.  After a restart of the agent the
    # master would send to the old MAC until its ARP entry expires.  The machine is part
    # of it: two slaves with devices of the same names may be in one network.
    digest = hashlib.sha256("\0".join((*machine(), *what)).encode()).digest()[:6]
    # Bit 1 of the first byte: locally administered, so no manufacturer uses it.  Bit 0
    # is 0: unicast.
    local = bytes([digest[0] & 0xFC | 0x02]) + digest[1:]
    return local.hex(":")


def machine() -> tuple[str, str]:
    """Return what tells this machine from others."""
    if _remembered:
        return _remembered[0]
    identity = next((path.read_text() for path in _MACHINE if path.exists()), "")
    uuid = ""
    with suppress(OSError):  # QEMU was given no -uuid, or this is no VM
        uuid = _PRODUCT_UUID.read_text()
    return identity, uuid


def remember_machine() -> None:
    """Read now what tells this machine from others: part of it only root may read."""
    _remembered[:] = [machine()]


def parse_mtu(text: str) -> int:
    """Return an MTU in bytes.

    Raises:
        BadValue: `text` is not a number, or the kernel would refuse that MTU.
    """
    mtu = int(text) if text.isdecimal() else 0
    if not MTU_MIN <= mtu <= MTU_MAX:
        raise BadValue(f"{text!r} is no MTU: {MTU_MIN} to {MTU_MAX} bytes", code="G138")
    return mtu


def parse_address(text: str) -> Address:
    """Return an IPv4 or IPv6 address with its prefix length.

    Raises:
        BadValue: `text` is not an address, or has no prefix length.
    """
    # Without a length, ip_interface() would take /32 or /128: the slave would have no
    # route to the master.
    if "/" not in text:
        raise BadValue(f"{text!r} has no prefix length, as in 10.0.0.1/24", code="G139")
    address = ipaddress.ip_interface(text)
    if "%" in text:
        raise BadValue(
            f"{text!r} names an interface: leave out what follows the %", code="G140"
        )
    _check_host(text, address)
    return address


def _check_host(text: str, address: Address) -> None:
    """Refuse what the kernel takes, and what no packet then comes to."""
    network = address.network
    # A network of two addresses has no address that stands for it (RFC 3021, RFC 6164).
    if network.num_addresses <= 2:
        return
    if address.ip == network.network_address:
        raise BadValue(
            f"{text!r} is the network's address, and no host's: write "
            f"{network.network_address + 1}/{network.prefixlen}",
            code="G141",
        )
    if address.version == 4 and address.ip == network.broadcast_address:
        raise BadValue(
            f"{text!r} is the network's broadcast address: write "
            f"{network.network_address + 1}/{network.prefixlen}",
            code="G142",
        )
