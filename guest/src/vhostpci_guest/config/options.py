# SPDX-License-Identifier: Apache-2.0
"""The agent's options, declared once: for `vhostpci-guest run`, and for its file.

The grammar of all commands is made for each command, and a slave VM may be emulated,
where importing the agent takes seconds.  So each function here imports what it needs
when its option is given, and the top of the file imports nothing of the agent's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vhostpci_shared.errors import BadValue

from ..dataplane import tx_methods
from ..pci import binding_names

if TYPE_CHECKING:
    from ..privileges.user import User
    from ..tap.naming import Rule, Template
    from .data_plane import Choice

DEFAULT_FILE = Path("/etc/vhostpci/guest.toml")
"""The file of an agent that is given no option, as the service is."""

MAX_POLL_US = 1000
"""Less than the longest sleep of a ring without kicks, so that an idle one sleeps."""


class Option(NamedTuple):
    """One option: `--NAME` of `run`, `NAME` in a file."""

    name: str
    parse: Callable[[str], object]
    """Returns the value of a text; raises BadValue or Unusable."""
    metavar: str
    help: str
    of_agent: bool = False
    """Whether it is for the whole agent, and so may stand at a file's top only."""
    choices: tuple[str, ...] = ()
    is_number: bool = False
    """Whether a file may also give it as a TOML number."""
    is_yes_no: bool = False
    """Whether it is `--NAME` alone on the command line, and true or false in a file."""
    repeats: bool = False
    """Whether it may be given again on the command line."""
    is_list: bool = False
    """Whether a file may give it as a list."""
    also: str = ""
    """Another name on the command line."""
    absolute: Callable[[str, Path], str] | None = None
    """Returns the text with a relative path in it joined to the file's directory."""

    @property
    def field(self) -> str:
        """Its name in the result of argparse."""
        return self.name.replace("-", "_")


def _pci_address(text: str) -> str:
    from ..pci.search import normal_address

    return normal_address(text)


def _socket(text: str) -> Path:
    if not text:
        raise BadValue(
            "'' is no path: write that of the daemon's ivshmem socket", code="G045"
        )
    return Path(text)


def _tap(text: str) -> "Template":
    from ..tap.naming import parse_tap

    return parse_tap(text)


def _bridge(text: str) -> str:
    from ..tap.bridge import parse_bridge

    return parse_bridge(text)


def _mtu(text: str) -> int:
    from ..tap.settings import parse_mtu

    return parse_mtu(text)


def _address(text: str) -> "Rule":
    from ..tap.naming import parse_address_rule

    return parse_address_rule(text)


def _mac(text: str) -> "Rule":
    from ..tap.naming import parse_mac_rule

    return parse_mac_rule(text)


def _cpus(text: str) -> frozenset[int]:
    from ..dataplane.cpus import parse_cpus

    return parse_cpus(text)


def _user(text: str) -> "User":
    from ..privileges.user import parse_user

    return parse_user(text)


def _data_plane(text: str) -> "Choice":
    from .data_plane import parse_data_plane

    return parse_data_plane(text)


def _data_plane_from(text: str, base: Path) -> str:
    kind, colon, path = text.partition(":")
    # An empty path stays empty, so that it is refused.
    return f"{kind}:{base / path}" if colon and path else text


def _poll_us(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > MAX_POLL_US:
        raise BadValue(
            f"{text!r} is not a number of microseconds from 0 to {MAX_POLL_US}",
            code="G046",
        )
    return int(text)


def _yes_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise BadValue(f"{text!r}: write true or false", code="G047")
    return text == "yes"


def _one_of(choices: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise BadValue(f"{text!r}: write one of {', '.join(choices)}", code="G048")
        return text

    return parse


_BINDINGS = (binding_names.AUTO, *binding_names.NAMES)

# In a file the name `device` has the tables [device.NAME].
PCI_DEVICE = Option(
    "pci-device",
    _pci_address,
    "PCI-ADDRESS",
    "for example 0000:00:05.0; default: all devices, also those that are plugged later",
    of_agent=True,
    also="device",
)
SOCKET = Option(
    "socket",
    _socket,
    "PATH",
    "the daemon's ivshmem socket; for a slave process, not a VM",
    of_agent=True,
    absolute=lambda text, base: str(base / text) if text else text,
)
BIND = Option(
    "bind",
    _one_of(_BINDINGS),
    "BINDING",
    "how to reach the PCI device; kmod is our module uio_vhostpci; default: the best "
    "way that works",
    of_agent=True,
    choices=_BINDINGS,
)
USER = Option(
    "user",
    _user,
    "NAME",
    "the user that the agent runs as, once what needs root is done; default: "
    "vhostpci-guest if there is such a user, else nobody; with --socket the owner of "
    "the socket",
    of_agent=True,
)
DATA_PLANE = Option(
    "data-plane",
    _data_plane,
    "KIND",
    "what moves the packets: auto, which is ring, with the reason in status; ring, our "
    "threads, to and from a TAP; vhost-net, this machine's kernel, to and from a TAP; "
    "or vhost-user:PATH, another process, as Open vSwitch with DPDK, which gets the "
    "rings over a Unix socket that the agent makes there ({name} in it is the device's "
    "name), or that this process makes: vhost-user:PATH,server=off; default: auto",
    absolute=_data_plane_from,
)
TAP = Option(
    "tap",
    _tap,
    "TEMPLATE",
    "the TAP's name, of 15 bytes at most; {name} in it is the device's name, {n} the "
    "smallest number that no other device of this agent has; default: the device's "
    "name if it is free, else vp0, vp1, ...",
)
BRIDGE = Option(
    "bridge",
    _bridge,
    "NAME",
    "the bridge that the TAPs join; created (without STP) if it does not exist, and "
    "kept at the end",
)
KEEP_TAP = Option(
    "keep-tap",
    _yes_no,
    "YES|NO",
    "leave the TAPs when the agent ends, with their addresses and routes, for the next "
    "agent, as if it had been killed",
    of_agent=True,
    is_yes_no=True,
)
MTU = Option(
    "mtu",
    _mtu,
    "BYTES",
    # No default here: the daemon publishes the master's MTU, and it may change.
    "default: what the master was told, else 1500",
    is_number=True,
)
ADDRESS = Option(
    "address",
    _address,
    "[NAME=]CIDR",
    "IPv4 or IPv6 address with prefix length, as 10.0.0.1/24, 10.0.{n}.1/24; NAME= is "
    "for the device of that name, which has only its own then; may be repeated",
    repeats=True,
    is_list=True,
)
MAC = Option(
    "mac",
    _mac,
    "[NAME=]MAC",
    "with several devices as 02:00:00:00:00:{n}, or NAME=MAC for each; default: one of "
    "our own, the same each time",
    repeats=True,
)
CPUS = Option(
    "cpus",
    _cpus,
    "LIST",
    "the processors that the threads which move packets may run on, as 0,3 or 2-5 or "
    "0-6:2; default: any",
    is_number=True,
)
TX_METHOD = Option(
    "tx-method",
    _one_of(tx_methods.METHODS),
    "METHOD",
    "how the master's packets go to the TAP: many with one system call (io_uring) or "
    "one by one (writev); default: io_uring if it can be used",
    choices=tx_methods.METHODS,
)
POLL_US = Option(
    "poll-us",
    _poll_us,
    "N",
    "look for packets for N microseconds before sleeping, while they come as fast as "
    "that: answers come sooner, and cost more of the processor; default: 0",
    is_number=True,
)

# `--help` lists the options in this order.
WHERE = (PCI_DEVICE, SOCKET)
"""Where devices come from: one of the two, or neither."""
OTHERS = (
    *(BIND, USER, DATA_PLANE, TAP, BRIDGE, KEEP_TAP, MTU, ADDRESS, MAC),
    *(CPUS, TX_METHOD, POLL_US),
)
OPTIONS = {option.name: option for option in (*WHERE, *OTHERS)}
"""All options, by name."""
