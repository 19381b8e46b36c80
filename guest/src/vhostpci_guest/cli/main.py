# SPDX-License-Identifier: Apache-2.0
"""vhostpci-guest: the command line.

Exit status: 0 success; 1 failure, and the last line on stderr says why; 2 the command
line is wrong.

A command imports what it needs when it runs: `status` and `--help` need little, and in
an emulated slave VM the import of the whole agent takes seconds.
"""

import argparse
import json
import logging
from collections.abc import Sequence

from vhostpci_shared.limits import no_descriptors, shortage
from vhostpci_shared.log_writer import LogWriter

from .. import __version__, status_socket
from ..errors import Unusable
from .errors import UsageError
from .machine import check_machine
from .print_stats import print_stats, select, statistics
from .print_status import print_link
from .run_options import add_run_options

log = logging.getLogger("vhostpci_guest")


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
    add_run_options(commands.add_parser("run", help="serve devices, in the foreground"))
    listed = commands.add_parser(
        "devices",
        help="list this machine's devices, how each could be bound, what that gives, "
        "and how to get more; nothing is changed",
    )
    status = commands.add_parser("status", help="show what the running agents do")
    stats = commands.add_parser(
        "stats", help="count packets, drops by reason, kicks, calls and batches"
    )
    stats.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="only this device: its name, its TAP, or its PCI address or socket",
    )
    for command in (listed, status, stats):
        command.add_argument("-j", "--json", action="store_true", help="as JSON")
    return top


def _run(arguments: argparse.Namespace) -> None:
    # Before the import: on another machine the ring driver may not have been built.
    check_machine()
    from .run import run

    run(arguments)


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


_COMMANDS = {"run": _run, "devices": _devices, "status": _status, "stats": _stats}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    arguments = parser().parse_args(argv)
    # The libraries' own debug and info lines are never shown, with -v or without.
    # Ours go to standard error, so that standard output has the result only.
    logging.basicConfig(
        level=logging.WARNING,
        format="vhostpci-guest: %(message)s",
        handlers=[LogWriter()],
    )
    log.setLevel(logging.DEBUG if arguments.verbose else logging.INFO)
    try:
        _COMMANDS[arguments.command](arguments)
    except UsageError as error:
        log.error("%s", error)
        return 2
    except (Unusable, OSError) as error:
        short = shortage(error)
        text = no_descriptors(short) if short else error
        log.error("%s", text, exc_info=arguments.verbose)
        return 1
    return 0
