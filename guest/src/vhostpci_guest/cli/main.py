# SPDX-License-Identifier: Apache-2.0
"""vhostpci-guest: the command line.

Exit status: 0 success; 1 failure, and the last line on stderr says why; 2 the command
line is wrong.
"""

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from vhostpci_shared import metadata as md

from .. import __version__, status_socket
from ..errors import Unusable
from ..interfaces import Source
from ..pci import bindings, sysfs_device
from ..pci.uevents import Uevents
from ..pci.watch import PciWatch
from ..socket import source
from ..tap import bridge, naming, netlink, tap
from . import devices

log = logging.getLogger("vhostpci_guest")

_T = TypeVar("_T")


class _UsageError(Exception):
    """The command line does not fit this machine: exit status 2."""


def _argument(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Return `parse` with errors that argparse shows to the user."""

    def checked(text: str) -> _T:
        try:
            return parse(text)
        except (ValueError, Unusable) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    top = argparse.ArgumentParser(
        prog="vhostpci-guest",
        description="Serves another VM's virtio-net card behind a TAP.",
    )
    top.add_argument("--version", action="version", version=__version__)
    top.add_argument(
        "-v", "--verbose", action="store_true", help="say more on standard error"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    listed = commands.add_parser(
        "devices",
        help="list this machine's devices, how each could be bound, what that gives, "
        "and how to get more; nothing is changed",
    )
    status = commands.add_parser("status", help="show what the running agents do")
    for command in (listed, status):
        command.add_argument("-j", "--json", action="store_true", help="as JSON")
    return top


def _add_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    run = commands.add_parser("run", help="serve devices, in the foreground")
    where = run.add_mutually_exclusive_group()
    where.add_argument(
        "--device",
        type=_argument(sysfs_device.normal_address),
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
        choices=(bindings.AUTO, *bindings.BINDINGS),
        default=bindings.AUTO,
        help="how to reach the PCI device; kmod is our module uio_vhostpci; default: "
        "the best way that works",
    )
    _add_tap(run)
    _add_addresses(run)


def _add_tap(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "--tap",
        type=_argument(naming.parse_tap),
        metavar="TEMPLATE",
        help="the TAP's name, of 15 bytes at most; {name} in it is the device's name, "
        "{n} the smallest number that no other device of this agent has; default: the "
        "device's name if it is free, else vp0, vp1, ...",
    )
    run.add_argument(
        "--bridge",
        type=_argument(bridge.parse_bridge),
        metavar="NAME",
        help="the bridge that the TAPs join; created (without STP) if it does not "
        "exist, and kept at the end",
    )
    run.add_argument(
        "--mtu",
        type=_argument(tap.parse_mtu),
        metavar="BYTES",
        help="default: what the master was told, else 1500",
    )


def _add_addresses(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "--address",
        type=_argument(naming.parse_address_rule),
        action="append",
        default=[],
        metavar="[NAME=]CIDR",
        help="IPv4 or IPv6 address with prefix length, as 10.0.0.1/24, 10.0.{n}.1/24; "
        "NAME= is for the device of that name, which has only its own then; may be "
        "repeated",
    )
    run.add_argument(
        "--mac",
        type=_argument(naming.parse_mac_rule),
        action="append",
        default=[],
        metavar="[NAME=]MAC",
        help="with several devices as 02:00:00:00:00:{n}, or NAME=MAC for each; "
        "default: one of our own, the same each time",
    )


def _run(arguments: argparse.Namespace) -> None:
    # Imported here because `devices` and `status` need neither C nor netlink.
    from ..agent import Agent, stopped_by_signals
    from ..dataplane.workers import Workers
    from ..tap.tap_port import Ports

    wanted, joined = _rules(arguments), _bridge(arguments)
    with ExitStack() as undo:
        stop, wakeup = undo.enter_context(stopped_by_signals())
        tap.check_node()
        if joined is not None:
            joined.make()
        control = _control(undo)
        source = _source(arguments)
        agent = Agent(source, Ports(wanted, joined).make, Workers, control)
        undo.callback(agent.close)
        netlink.preload()
        agent.run(stop, wakeup)


def _rules(arguments: argparse.Namespace) -> naming.Rules:
    try:
        return naming.make_rules(
            tap=arguments.tap,
            mtu=arguments.mtu,
            macs=arguments.mac,
            addresses=arguments.address,
        )
    except ValueError as error:
        raise _UsageError(str(error)) from None


def _bridge(arguments: argparse.Namespace) -> bridge.Bridge | None:
    if arguments.bridge is None:
        return None
    if arguments.address:
        raise _UsageError(
            "--bridge and --address: a port of a bridge has no address of its own; "
            f"give it to the bridge: ip address add CIDR dev {arguments.bridge}"
        )
    return bridge.Bridge(arguments.bridge)


def _control(undo: ExitStack) -> status_socket.Control | None:
    try:
        socket = status_socket.Control()
    except OSError as error:
        log.warning("no status socket in %s: %s", status_socket.RUN_DIR, error.strerror)
        return None
    undo.callback(socket.close)
    return socket


def _source(arguments: argparse.Namespace) -> Source:
    if arguments.socket is not None:
        return source.SocketSource(arguments.socket)
    if arguments.device is not None:
        # A wrong address is an error before anything is bound.
        sysfs_device.at(arguments.device)
    return PciWatch(
        Uevents(),
        partial(bindings.bind_if, wanted=arguments.bind),
        only=arguments.device,
    )


def _devices(arguments: argparse.Namespace) -> None:
    links = _links()
    found = [devices.describe(device, links) for device in sysfs_device.find()]
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    if not found:
        print("no ivshmem device")
    for device in found:
        print("\n".join(devices.lines(device)))


def _links() -> status_socket.Status:
    """Return what agents serve, as far as we may know."""
    try:
        return status_socket.ask()
    except OSError:
        return []


def _status(arguments: argparse.Namespace) -> None:
    found = status_socket.ask()
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    if not found:
        print("no agent is running")
    for link in found:
        _print_link(link)


def _print_link(link: dict[str, Any]) -> None:
    how = bindings.signals(link["interrupts"])
    carrier = "on" if link["carrier"] else "off"
    print(
        f"{link['device']}  {link['name'] or '(no name yet)'}  {link['state']}"
        f"  {link['binding']} ({how}), pid {link['pid']}"
    )
    if link["message"]:
        print(f"  {link['message']}")
    master = "connected" if link["master"] else "not connected"
    print(f"  daemon {link['daemon']}, master {master}")
    bridge = f" in bridge {link['bridge']}" if link["bridge"] else ""
    print(f"  TAP {link['tap'] or '(none yet)'}{bridge}, carrier {carrier}")
    print(f"  window {md.SLAVE_ID}: {_speed_text(link['speed'])}")
    for window in link["windows"]:
        print(f"  window {window['id']}: {_window_text(window)}")
    for ring in link["rings"]:
        side = "receive" if ring["ring"] % 2 == 0 else "transmit"
        print(
            f"  ring {ring['ring']} ({side}) {ring['state']} at {ring['index']}: "
            f"{ring['packets']} packets, {ring['octets']} bytes, {ring['drops']} "
            f"dropped, {ring['kicks']} kicks, {ring['calls']} calls"
        )
        if ring["reason"]:
            print(f"    {ring['reason']}")


def _window_text(window: dict[str, Any]) -> str:
    if window["device"] is None:
        return "not there yet"
    speed = _speed_text(window["speed"])
    return f"{window['device']}, {window['size']} bytes, {speed}"


def _speed_text(speed: dict[str, Any] | None) -> str:
    if speed is None:
        return "not measured"
    text = f"reads {speed['mbps']:.0f} MB/s (own memory {speed['own_mbps']:.0f} MB/s)"
    return f"{text}: looks uncached" if speed["slow"] else text


_COMMANDS = {"run": _run, "devices": _devices, "status": _status}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = parser().parse_args(argv)
    # The libraries' own debug and info lines are never shown, with -v or without.
    logging.basicConfig(level=logging.WARNING, format="vhostpci-guest: %(message)s")
    log.setLevel(logging.DEBUG if arguments.verbose else logging.INFO)
    try:
        _COMMANDS[arguments.command](arguments)
    except _UsageError as error:
        log.error("%s", error)
        return 2
    except (Unusable, OSError) as error:
        log.error("%s", error, exc_info=arguments.verbose)
        return 1
    return 0
