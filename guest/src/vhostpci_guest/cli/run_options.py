# SPDX-License-Identifier: Apache-2.0
"""The options of `vhostpci-guest run`.

The grammar of all commands is made for each command, and a slave VM may be emulated,
where importing the agent takes seconds.  So each function here imports what it needs
when its option is given, and the top of the file imports nothing of the agent's.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..dataplane import tx_methods
from ..errors import Unusable
from ..pci.binding_names import AUTO, NAMES
from .machine import check_machine

if TYPE_CHECKING:
    from ..privileges.user import User
    from ..tap.naming import Rule, Template
    from . import data_plane_choice

_T = TypeVar("_T")

MAX_POLL_US = 1000
"""Less than the longest sleep of a ring without kicks, so that an idle one sleeps."""


def _argument(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Return `parse` with errors that argparse shows to the user."""

    def checked(text: str) -> _T:
        try:
            return parse(text)
        except (ValueError, Unusable) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


@_argument
def _pci_address(text: str) -> str:
    from ..pci.search import normal_address

    return normal_address(text)


@_argument
def _tap(text: str) -> "Template":
    from ..tap.naming import parse_tap

    return parse_tap(text)


@_argument
def _bridge(text: str) -> str:
    from ..tap.bridge import parse_bridge

    return parse_bridge(text)


@_argument
def _mtu(text: str) -> int:
    from ..tap.settings import parse_mtu

    return parse_mtu(text)


@_argument
def _address(text: str) -> "Rule":
    from ..tap.naming import parse_address_rule

    return parse_address_rule(text)


@_argument
def _mac(text: str) -> "Rule":
    from ..tap.naming import parse_mac_rule

    return parse_mac_rule(text)


@_argument
def _cpus(text: str) -> frozenset[int]:
    from ..dataplane.cpus import parse_cpus

    return parse_cpus(text)


@_argument
def _user(text: str) -> "User":
    from ..privileges.user import parse_user

    return parse_user(text)


@_argument
def _data_plane(text: str) -> "data_plane_choice.Choice":
    from .data_plane_choice import parse_data_plane

    return parse_data_plane(text)


@_argument
def _poll_us(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > MAX_POLL_US:
        raise ValueError(
            f"{text!r} is not a number of microseconds from 0 to {MAX_POLL_US}"
        )
    return int(text)


def add_run(run: argparse.ArgumentParser) -> None:
    """Add the options of `run` to its parser."""
    # A slave process has no PCI devices, and a slave VM has no socket of the daemon's.
    where = run.add_mutually_exclusive_group()
    where.add_argument(
        "--device",
        type=_pci_address,
        metavar="PCI-ADDRESS",
        help="for example 0000:00:05.0; default: all devices, also those that are "
        "plugged later",
    )
    where.add_argument(
        "--socket",
        type=Path,
        metavar="PATH",
        help="the daemon's ivshmem socket; for a slave process, not a VM",
    )
    run.add_argument(
        "--bind",
        # From binding_names: the table of the bindings itself imports all of them.
        choices=(AUTO, *NAMES),
        default=AUTO,
        help="how to reach the PCI device; kmod is our module uio_vhostpci; default: "
        "the best way that works",
    )
    run.add_argument(
        "--user",
        type=_user,
        metavar="NAME",
        help="the user that the agent runs as, once what needs root is done; default: "
        "vhostpci-guest if there is such a user, else nobody; with --socket the owner "
        "of the socket",
    )
    _add_data_plane(run)
    _add_tap(run)
    _add_addresses(run)
    _add_workers(run)
    run.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    # Before the import: on another machine the ring driver may not have been built.
    check_machine()
    from .run import run

    run(arguments)


def _add_data_plane(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "--data-plane",
        type=_data_plane,
        metavar="KIND",
        help="what moves the packets: auto, which is ring, with the reason in status; "
        "ring, our threads, to and from a TAP; "
        "vhost-net, this machine's kernel, to and from a TAP; or vhost-user:PATH, "
        "another process, as Open vSwitch with DPDK, which gets the rings over a Unix "
        "socket that the agent makes there ({name} in it is the device's name), or "
        "that this process makes: vhost-user:PATH,server=off; "
        "default: auto",
    )


def _add_tap(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "--tap",
        type=_tap,
        metavar="TEMPLATE",
        help="the TAP's name, of 15 bytes at most; {name} in it is the device's name, "
        "{n} the smallest number that no other device of this agent has; default: the "
        "device's name if it is free, else vp0, vp1, ...",
    )
    run.add_argument(
        "--bridge",
        type=_bridge,
        metavar="NAME",
        help="the bridge that the TAPs join; created (without STP) if it does not "
        "exist, and kept at the end",
    )
    run.add_argument(
        "--keep-tap",
        action="store_true",
        help="leave the TAPs when the agent ends, with their addresses and routes, for "
        "the next agent, as if it had been killed",
    )
    run.add_argument(
        "--mtu",
        type=_mtu,
        metavar="BYTES",
        # No default here: the daemon publishes the master's MTU, and it may change.
        help="default: what the master was told, else 1500",
    )


def _add_addresses(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "--address",
        type=_address,
        action="append",
        default=[],
        metavar="[NAME=]CIDR",
        help="IPv4 or IPv6 address with prefix length, as 10.0.0.1/24, 10.0.{n}.1/24; "
        "NAME= is for the device of that name, which has only its own then; may be "
        "repeated",
    )
    run.add_argument(
        "--mac",
        type=_mac,
        action="append",
        default=[],
        metavar="[NAME=]MAC",
        help="with several devices as 02:00:00:00:00:{n}, or NAME=MAC for each; "
        "default: one of our own, the same each time",
    )


def _add_workers(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "--cpus",
        type=_cpus,
        metavar="LIST",
        help="the processors that the threads which move packets may run on, as "
        "0,3 or 2-5 or 0-6:2; default: any",
    )
    run.add_argument(
        "--tx-method",
        choices=tx_methods.METHODS,
        default=tx_methods.AUTO,
        help="how the master's packets go to the TAP: many with one system call "
        "(io_uring) or one by one (writev); default: io_uring if it can be used",
    )
    run.add_argument(
        "--poll-us",
        type=_poll_us,
        default=0,
        metavar="N",
        help="look for packets for N microseconds before sleeping, while they come as "
        "fast as that: answers come sooner, and cost more of the processor; default: 0",
    )
