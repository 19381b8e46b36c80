# SPDX-License-Identifier: Apache-2.0
"""The command `doctor`: look for all that is known to go wrong, and change nothing."""

import argparse

from vhostpci_shared.findings import as_json, examine, wrong
from vhostpci_shared.print_findings import lines
from vhostpci_shared.terminal import Terminal, add_color

from ..config import options
from ..doctor.checks import CHECKS
from ..doctor.gather import gather
from .arguments import Usage, add_name, run_dir


def add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Exit status: 0 nothing is wrong, 1 something is, 2 the arguments are wrong.  "
        "Warnings, and what could not be looked at, leave it 0.  As root more can be "
        "looked at.  docs/doctor.md lists the checks."
    )
    add_name(parser, nargs="?")
    options.add_to(parser, options.RUN_DIR)
    parser.add_argument(
        "--qemu",
        metavar="PATH",
        help="the QEMU that runs the VMs (default: the one in PATH)",
    )
    parser.add_argument(
        "--master-qmp",
        metavar="SOCKET",
        help="the QMP socket of the master of NAME, which is asked for its memory and "
        "its devices; name one that no other program uses",
    )
    parser.add_argument("-j", "--json", action="store_true", help="print JSON")
    add_color(parser)
    parser.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> None:
    if args.master_qmp is not None and args.name is None:
        raise Usage("--master-qmp is for one device: give its NAME", code="H001")
    host = gather(run_dir(args), args.name, args.qemu, args.master_qmp)
    findings = list(examine(CHECKS, host))
    if args.json:
        print(as_json(findings))
    else:
        print("\n".join(lines(findings, Terminal.of(color=args.color))))
    if wrong(findings):
        raise SystemExit(1)
