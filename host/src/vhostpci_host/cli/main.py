# SPDX-License-Identifier: Apache-2.0
"""The command `vhostpci-host`: its sub-commands, and its exit status.

Exit status: 0 the command succeeded, 1 it failed (stderr says why), 2 the arguments are
wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from vhostpci_shared import log_options
from vhostpci_shared.short_usage import Parser

from .. import __version__
from ..config.device import ConfigError
from ..errors import FileError, HostError
from . import capabilities
from .arguments import Usage

_COMMANDS = {
    "run": ("serve", "serve a device, or those of a file, in the foreground"),
    "check-config": ("serve", "print all mistakes of a file"),
    "add": ("manage", "have a running daemon serve one more device"),
    "remove": ("manage", "have a daemon stop serving a device"),
    "reload": ("manage", "have a daemon serve what its file says now"),
    "restart": ("manage", "replace a daemon by a new process, which goes on"),
    "list": ("manage", "list a daemon's devices"),
    "status": ("manage", "print the state of a device, or of all"),
    "graph": ("graph.command", "draw the VMs, and the devices that join them"),
    "stats": ("stats", "print what has crossed each device"),
    "top": ("top", "show what crosses each ring now, until q is pressed"),
    "metrics": ("metrics", "give the state of all devices to Prometheus"),
    "doctor": (
        "doctor",
        "look for all that is known to go wrong, with what repairs it; nothing is "
        "changed",
    ),
    "trace": ("trace", "print a device's vhost-user messages, those to come, too"),
    "dump": ("dump", "print a device's metadata and rings, decoded"),
    "monitor": ("monitor", "print what happens to the devices, as it happens"),
    "qemu-args": ("vm_arguments", "print QEMU's arguments"),
    "xml": (
        "vm_arguments",
        "print a domain for libvirt, with what it needs and no disk",
    ),
    "master-check": (
        "vm_arguments",
        "print a script that looks, in a confined master, at what its slave sees",
    ),
}
"""Each command's module in this package, and its help.

The module is imported if the command is used, and has a function `add_COMMAND`, with
"_" for "-", that adds the command's arguments.  `list` and `status` run often, in
scripts and as a monitoring probe: they must not wait for all modules of the daemon.
"""


def parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Return the grammar of all commands, with the arguments of those in `argv`."""
    parser = Parser(
        prog="vhostpci-host",
        description="Serve a VM's virtio-net card from inside another VM.",
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {__version__}"
    )
    capabilities.add_option(parser)
    log_options.add_to(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        log_options.add_to(command)
        # A word that only looks like a command, such as a device named "run", costs
        # an import and does no harm.
        if name in argv:
            found = import_module(f".{module}", __package__)
            getattr(found, f"add_{name.replace('-', '_')}")(command)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    words = capabilities.with_command(sys.argv[1:] if argv is None else argv)
    args = parser(words).parse_args(words)
    try:
        args.run(args)
    except FileError as error:
        # Without "vhostpci-host:" in front: the text has a line for each mistake, which
        # begins with the file's name, as an editor expects it.
        print(error, file=sys.stderr)
        return 1
    # A ConfigError here comes from the command line: a file's are in its FileError.
    # argparse exits with 2 for a wrong option, so we do for a wrong combination.
    except (Usage, ConfigError) as error:
        _say(words, error)
        return 2
    except HostError as error:
        _say(words, error)
        return 1
    except BrokenPipeError:
        # The reader of our output (`head`, a pager) has ended, as a user may well want.
        # Print no traceback about it.
        return 1
    return 0


def _say(words: Sequence[str], error: HostError) -> None:
    """Print why the command failed, in the form of the log."""
    print(log_options.error_line(words, "vhostpci-host", error), file=sys.stderr)
