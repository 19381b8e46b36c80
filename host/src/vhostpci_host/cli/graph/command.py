# SPDX-License-Identifier: Apache-2.0
"""The command line of `graph`."""

import argparse

from vhostpci_shared.terminal import Terminal, add_color

from ...config import options
from ...errors import HostError
from .. import vms
from ..arguments import add_name, run_dir
from ..manage import ask_status, status_of_all
from . import dot, svg, text
from .topology import links


def add_graph(parser: argparse.ArgumentParser) -> None:
    add_name(parser, nargs="?")
    options.add_to(parser, options.RUN_DIR)
    parser.add_argument(
        "--format",
        choices=["text", "dot", "svg"],
        default="text",
        help="text; dot, for Graphviz; or svg, for a browser or a document "
        "(default: %(default)s)",
    )
    add_color(parser)
    parser.set_defaults(run=_graph)


def _graph(args: argparse.Namespace) -> None:
    directory, failed = run_dir(args), 0
    if args.name:
        statuses = [ask_status(directory, args.name)]
    else:
        statuses, failed = status_of_all(directory)
    found = links(map(vms.add_to, statuses))
    if args.format == "text":
        terminal = Terminal.of(color=args.color)
        print("\n".join(text.lines(found, terminal)) or "no devices")
    else:
        print("\n".join((dot if args.format == "dot" else svg).lines(found)))
    if failed:
        raise HostError(f"{failed} of the devices and daemons are missing", code="H006")
