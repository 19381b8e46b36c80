# SPDX-License-Identifier: Apache-2.0
"""The two programs, as their man pages and completions are made from them.

Commands and options come from the parsers themselves.  What a parser does not know
(files, exit statuses, other pages) stands here.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from vhostpci_guest.cli import main as guest
from vhostpci_host import __version__
from vhostpci_host.cli import main as host

VERSION = __version__

EXIT_STATUS = {
    "0": "The command succeeded.",
    "1": "It failed; the last line on standard error says why.",
    "2": "The command line is wrong.",
}


DIAGNOSTICS = (
    "Each error ends with its code, as in [H061], which never changes its meaning: "
    "docs/errors.md of the sources says what each means, and what follows it."
)


@dataclass(frozen=True, slots=True)
class Program:
    """One program.

    Args:
        parser: its grammar, with the arguments of all commands.
        purpose: what it is, for `whatis`.
        files: what it reads and makes, by path.
        see_also: pages of the manual, each with its section.
    """

    parser: argparse.ArgumentParser
    purpose: str
    files: Mapping[str, str]
    see_also: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """What a user types."""
        return self.parser.prog


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a program.

    Args:
        name: its name.
        help: the line that `--help` of the program has for it.
        parser: its grammar.
    """

    name: str
    help: str
    parser: argparse.ArgumentParser


def commands(parser: argparse.ArgumentParser) -> list[Command]:
    """Return the commands of a program, in the order of its help."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            found += [
                Command(name, helps[name] or "", parser)
                for name, parser in action.choices.items()
            ]
    return found


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the arguments of a grammar, without commands and what is hidden."""
    return [
        action
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        and not isinstance(action, argparse._SubParsersAction)
    ]


def help_of(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Return an argument's help, with its default and its choices filled in."""
    return parser._get_formatter()._expand_help(action) if action.help else ""


def value_of(action: argparse.Action) -> str:
    """Return what stands for an option's value, or "" for one that takes none."""
    if action.nargs == 0:
        return ""
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper()


HOST = Program(
    parser=host.parser(list(host._COMMANDS)),
    purpose="daemon on the hypervisor that serves a VM's network card from inside "
    "another VM",
    files={
        "/etc/vhostpci.toml": "The devices of vhostpci-host.service.",
        "/run/vhostpci/": "The sockets for the QEMUs and for the commands.",
        "/dev/shm/vhostpci/": "The memory of the master VMs, in arena mode.",
    },
    see_also=(("vhostpci-guest", "8"), ("qemu-system-x86_64", "1"), ("virsh", "1")),
)

GUEST = Program(
    parser=guest.parser(list(guest._COMMANDS)),
    purpose="agent in the slave VM that serves another VM's network card behind a TAP",
    files={
        "/etc/vhostpci/guest.toml": "The options and devices of "
        "vhostpci-guest.service.",
        "/etc/default/vhostpci-guest": "Options of `run` for vhostpci-guest.service, "
        "as OPTIONS=--bridge br0.",
        "/run/vhostpci-guest/": "The sockets of the agents that run.",
    },
    see_also=(("vhostpci-host", "8"), ("ip-link", "8"), ("systemd.link", "5")),
)

PROGRAMS = (HOST, GUEST)
