# SPDX-License-Identifier: Apache-2.0
"""The commands that show something and change nothing: `devices`, `status`, `stats`."""

import argparse
import json
import logging
from collections.abc import Sequence

from .. import status_socket
from ..errors import Unusable
from .print_stats import print_stats, select, statistics
from .print_status import print_link

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
    _add_json(parser)
    parser.set_defaults(run=_stats)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-j", "--json", action="store_true", help="as JSON")


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
    for device in found:
        print("\n".join(devices.lines(device)))


def _links() -> status_socket.Status:
    """Return what the agents serve that answer us."""
    # Only root may ask an agent, but every user may list the devices: what the agents
    # serve is then missing from the list, and the rest of it is right.
    try:
        links, problems = status_socket.ask()
    except Unusable as why:
        links, problems = [], [str(why)]
    for problem in problems:
        log.warning("%s; the list does not say what is served", problem)
    return links


def _status(arguments: argparse.Namespace) -> None:
    links, problems = status_socket.ask()
    # An empty list too: a program that reads JSON gets JSON.
    if arguments.json:
        print(json.dumps(links, indent=2))
    elif not links and not problems:
        print("no agent is running")
    else:
        for link in links:
            print_link(link)
    _raise(problems)


def _stats(arguments: argparse.Namespace) -> None:
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
            print_stats(device)
    _raise(problems)


def _raise(problems: Sequence[str]) -> None:
    # Last, so that it is seen below a long list; each is a line.
    if problems:
        raise Unusable("\nvhostpci-guest: ".join(problems))
