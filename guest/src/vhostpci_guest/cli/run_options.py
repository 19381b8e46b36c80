# SPDX-License-Identifier: Apache-2.0
"""The arguments of `run` and `check-config`, made of the table of the agent's options.

The grammar of all commands is made for each command, so this file imports nothing of
the agent's but that table.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vhostpci_shared.errors import told

from ..config import options
from ..errors import Unusable
from .machine import check_machine


def add_run(run: argparse.ArgumentParser) -> None:
    """Add the options of `run` to its parser."""
    run.epilog = (
        "SIGTERM and SIGINT end the agent, which then gives all devices back.  SIGHUP "
        "has it read the file of --config again, as `reload` does.  SIGUSR1 and "
        "SIGUSR2 are ignored."
    )
    run.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the options from this file, in place of all others here, and those of "
        f"each device; default, if no option is given: {options.DEFAULT_FILE}, if it "
        "is there",
    )
    # A slave process has no PCI devices, and a slave VM has no socket of the daemon's.
    where = run.add_mutually_exclusive_group()
    for option in options.WHERE:
        _add(where, option)
    for option in options.OTHERS:
        _add(run, option)
    run.set_defaults(run=_run)


def add_check_config(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `check-config` to its parser."""
    parser.add_argument(
        "file",
        type=Path,
        nargs="?",
        default=options.DEFAULT_FILE,
        metavar="FILE",
        help=f"default: {options.DEFAULT_FILE}",
    )
    parser.set_defaults(run=_check_config)


def _add(to: Any, option: options.Option) -> None:
    """Add one option to a parser, or to a group of one."""
    names = [f"--{name}" for name in (option.also, option.name) if name]
    common: dict[str, Any] = {"dest": option.field, "help": option.help}
    if option.is_yes_no:
        # None if it is absent, as all others.
        to.add_argument(*names, action="store_const", const=True, **common)
        return
    to.add_argument(
        *names,
        action="append" if option.repeats else "store",
        type=str if option.choices else _argument(option.parse),
        choices=option.choices or None,
        metavar=None if option.choices else option.metavar,
        **common,
    )


def _argument(parse: Callable[[str], object]) -> Callable[[str], object]:
    """Return `parse` with errors that argparse shows to the user."""

    def checked(text: str) -> object:
        try:
            return parse(text)
        except (ValueError, Unusable) as error:
            raise argparse.ArgumentTypeError(told(error)) from None

    return checked


def values(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that the command line has, by their names."""
    found = {
        name: getattr(arguments, option.field)
        for name, option in options.OPTIONS.items()
    }
    # What was not given has no value, and one of nothing is the same as the default.
    return {name: value for name, value in found.items() if value is not None}


def _run(arguments: argparse.Namespace) -> None:
    # Before the import: on another machine the ring driver may not have been built.
    check_machine()
    from .run import run

    run(arguments)


def _check_config(arguments: argparse.Namespace) -> None:
    from ..config.file import load

    count = len(load(arguments.file).rules.own)
    print(f"{arguments.file}: {count} device{'s' * (count != 1)}, no errors")
