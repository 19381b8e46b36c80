# SPDX-License-Identifier: Apache-2.0
"""The commands that show something and change nothing: `devices`, `status`, `stats`."""

import argparse
import json
import logging
from collections.abc import Sequence

from vhostpci_shared.errors import said
from vhostpci_shared.terminal import Terminal, add_color

from .. import status_socket
from ..errors import Unusable
from .print_stats import select, statistics, stats_text
from .print_status import link_text

log = logging.getLogger(__name__)


def add_devices(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)
    parser.set_defaults(run=_devices)


def add_status(parser: argparse.ArgumentParser) -> None:
    _add_json(parser)
    parser.set_defaults(run=_status)


def add_stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="only this device: its name, its TAP, or its PCI address or socket",
    )
    parser.add_argument(
        "--clear",
        action="store_true",
        help="count from now on, for all who use this command; status and metrics go "
        "on as before",
    )
    _add_json(parser)
    parser.set_defaults(run=_stats)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-j", "--json", action="store_true", help="as JSON")
    add_color(parser)


def _devices(arguments: argparse.Namespace) -> None:
    from ..pci import search
    from . import devices

    links = _links()
    found = [devices.describe(device, links) for device in search.find()]
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    if not found:
        print("no ivshmem device")
    terminal = Terminal.of(color=arguments.color)
    for device in found:
        print("\n".join(devices.lines(device, terminal)))


def _links() -> status_socket.Status:
    """Return what the agents serve that answer us."""
    # Only root may ask an agent, but every user may list the devices: what the agents
    # serve is then missing from the list, and the rest of it is right.
    try:
        links, problems = status_socket.ask()
    except Unusable as why:
        links, problems = [], [said(why)]
    for problem in problems:
        log.warning("%s; the list does not say what is served", problem)
    return links


def _status(arguments: argparse.Namespace) -> None:
    terminal = Terminal.of(color=arguments.color)
    links, problems = status_socket.ask()
    # An empty list too: a program that reads JSON gets JSON.
    if arguments.json:
        print(json.dumps(links, indent=2))
    elif not links and not problems:
        print("no agent is running")
    else:
        for link in links:
            print("\n".join(link_text(link, terminal)))
    _raise(problems)


def _stats(arguments: argparse.Namespace) -> None:
    if arguments.clear:
        _clear(arguments.name)
        return
    terminal = Terminal.of(color=arguments.color)
    links, problems = status_socket.ask()
    counted = [statistics(link) for link in links]
    # The reason why a device is missing from the list stands in `problems`.
    if arguments.name is not None and not problems:
        counted = select(counted, arguments.name)
    if arguments.json:
        print(json.dumps(counted, indent=2))
    elif not counted and not problems:
        print("no agent serves a device")
    else:
        for device in counted:
            print("\n".join(stats_text(device, terminal)))
    _raise(problems)


def _clear(name: str | None) -> None:
    links, problems = status_socket.ask()
    if name is not None and not problems:
        there = select([statistics(link) for link in links], name)
        devices = [found["device"] for found in there]
        links = [link for link in links if link["device"] in devices]
    for link in links:
        request = {"command": "clear", "device": link["device"]}
        status_socket.request(link["pid"], request)
        print(f"{link['name'] or link['device']}: counts from now on")
    _raise(problems)


def _raise(problems: Sequence[str]) -> None:
    # Last, so that it is seen below a long list; each is a line.
    if problems:
        raise status_socket.missing(problems)
