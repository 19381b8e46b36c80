# SPDX-License-Identifier: Apache-2.0
"""The command `vhostpci-host`: its sub-commands, and its exit status.

Exit status: 0 the command succeeded, 1 it failed (stderr says why), 2 the arguments are
wrong.
"""

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from ..config.device import ConfigError
from ..config.file import FileError
from ..errors import HostError
from . import capabilities, manage, serve, vm_arguments
from .arguments import Usage

_COMMANDS = {
    "run": (serve.add_run, "serve a device, or those of a file, in the foreground"),
    "check-config": (serve.add_check_config, "print all mistakes of a file"),
    "add": (manage.add_add, "have a running daemon serve one more device"),
    "remove": (manage.add_remove, "have a daemon stop serving a device"),
    "list": (manage.add_list, "list a daemon's devices"),
    "status": (manage.add_status, "print the state of a device, or of all"),
    "qemu-args": (vm_arguments.add_qemu_args, "print QEMU's arguments"),
    "xml": (
        vm_arguments.add_xml,
        "print a domain for libvirt, with what it needs and no disk",
    ),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vhostpci-host",
        description="Serve a VM's virtio-net card from inside another VM.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    capabilities.add_option(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (add_arguments, text) in _COMMANDS.items():
        add_arguments(commands.add_parser(name, help=text, description=text))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = _parser().parse_args(argv)
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
        print(f"vhostpci-host: {error}", file=sys.stderr)
        return 2
    except HostError as error:
        print(f"vhostpci-host: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output (`head`, a pager) has ended, as a user may well want.
        # Print no traceback about it.
        return 1
    return 0
