# SPDX-License-Identifier: Apache-2.0
"""vhostpci-guest: the command line.

Exit status: 0 success; 1 failure, and the last line on stderr says why; 2 the command
line is wrong.

A command imports what it needs when it runs: `status` and `--help` need little, and in
an emulated slave VM the import of the whole agent takes seconds.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from vhostpci_shared import log_options
from vhostpci_shared.errors import code_of
from vhostpci_shared.limits import no_descriptors, shortage
from vhostpci_shared.log_writer import LogWriter
from vhostpci_shared.short_usage import Parser

from .. import __version__
from ..errors import FileError, Unusable
from .errors import UsageError

log = logging.getLogger("vhostpci_guest")

_COMMANDS = {
    "run": ("run_options", "serve devices, in the foreground"),
    "check-config": ("run_options", "print all mistakes of a configuration file"),
    "reload": ("reload", "have running agents do what their file says now"),
    "devices": (
        "show",
        "list this machine's devices, how each could be bound, what that gives, and "
        "how to get more; nothing is changed",
    ),
    "doctor": (
        "doctor",
        "look for all that is known to go wrong, with what repairs it; nothing is "
        "changed",
    ),
    "status": ("show", "show what the running agents do"),
    "top": ("top", "show what crosses each ring now, until q is pressed"),
    "pcap": ("pcap", "capture the packets of a device's rings, with their headers"),
    "metrics": ("metrics", "give the counters of all devices to Prometheus"),
    "dump": ("dump", "print a device's metadata and rings, decoded"),
    "audit": ("audit", "search a device's windows for what should not be there"),
    "stats": ("show", "count packets, drops by reason, kicks, calls and batches"),
}
"""Each command's module in this package, and its help.

The module is imported if the command is used, and has a function `add_COMMAND`, with
"_" for "-", that adds the command's arguments and says by `set_defaults(run=...)` what
runs it.
"""


def parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Return the grammar of all commands, with the arguments of those in `words`."""
    top = Parser(
        prog="vhostpci-guest",
        description="Serves another VM's virtio-net card behind a TAP.",
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    log_options.add_to(top)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        log_options.add_to(command)
        # A word that only looks like a command, such as a TAP named "run", costs an
        # import and does no harm.
        if name in words:
            found = import_module(f".{module}", __package__)
            getattr(found, f"add_{name.replace('-', '_')}")(command)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    words = sys.argv[1:] if argv is None else argv
    arguments = parser(words).parse_args(words)
    # The libraries' own debug and info lines are never shown, with -v or without.
    # Ours go to standard error, so that standard output has the result only.
    writer = LogWriter()
    writer.setFormatter(
        log_options.formatter_of(arguments, "vhostpci-guest", dated=False)
    )
    logging.basicConfig(level=logging.WARNING, handlers=[writer])
    log.setLevel(log_options.level_of(arguments))
    try:
        arguments.run(arguments)
    except FileError as error:
        # Without "vhostpci-guest:" in front: the text has a line for each mistake,
        # which begins with the file's name, as an editor expects it.
        print(error, file=sys.stderr)
        return 1
    except UsageError as error:
        log.error("%s", error)
        return 2
    except (Unusable, OSError) as error:
        log.error("%s", _coded(error), exc_info=log.isEnabledFor(logging.DEBUG))
        return 1
    return 0


def _coded(error: Unusable | OSError) -> Exception:
    """Return an error with a code, also for one of the kernel's."""
    if short := shortage(error):
        text = no_descriptors(short)
        return Unusable(text, code=text.code)
    return error if code_of(error) else Unusable(str(error), code="G010")
