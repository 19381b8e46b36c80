# SPDX-License-Identifier: Apache-2.0
"""The command `doctor`: look for all that is known to go wrong, and change nothing."""

import argparse
import sys
from pathlib import Path

from vhostpci_shared.findings import as_json, examine, wrong
from vhostpci_shared.machine import Machine
from vhostpci_shared.print_findings import lines
from vhostpci_shared.terminal import Terminal, add_color

from .. import __version__, status_socket
from ..doctor.checks import CHECKS
from ..doctor.peek import peek
from ..doctor.slave import Peek, Slave
from ..errors import Unusable
from ..pci import search
from ..pci.sysfs_device import PciDevice
from .devices import describe


def add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Exit status: 0 nothing is wrong, 1 something is, 2 the arguments are wrong.  "
        "Warnings, and what could not be looked at, leave it 0.  As root more can be "
        "looked at.  docs/doctor.md lists the checks."
    )
    parser.add_argument("-j", "--json", action="store_true", help="as JSON")
    add_color(parser)
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> None:
    findings = list(examine(CHECKS, _gather()))
    if arguments.json:
        print(as_json(findings))
    else:
        print("\n".join(lines(findings, Terminal.of(color=arguments.color))))
    if wrong(findings):
        raise SystemExit(1)


def _gather() -> Slave:
    """Return this machine, with its devices and what its agents say."""
    forbidden = ""
    try:
        links, problems = status_socket.ask()
    except Unusable as why:
        links, problems, forbidden = [], [], str(why)
    found = _find_devices()
    return Slave(
        machine=Machine(),
        version=__version__,
        program=str(Path(sys.argv[0]).absolute()),
        devices=tuple(describe(device, links) for device in found.values()),
        links=tuple(links),
        problems=tuple(problems),
        forbidden=forbidden,
        peek=_Peeks(found),
    )


def _find_devices() -> dict[str, PciDevice]:
    try:
        found = search.find()
    except ImportError:  # pyudev finds no libudev, of which there is a check
        found = search.find(addresses=Machine().names_if_there("/sys/bus/pci/devices"))
    return {device.address: device for device in found}


class _Peeks:
    """Reads the metadata of each device at most once.

    Args:
        devices: by their addresses.
    """

    def __init__(self, devices: dict[str, PciDevice]) -> None:
        self._devices = devices
        self._seen: dict[str, Peek | None] = {}

    def __call__(self, address: str) -> Peek | None:
        if address not in self._seen:
            self._seen[address] = peek(self._devices[address])
        return self._seen[address]
