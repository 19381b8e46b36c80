# SPDX-License-Identifier: Apache-2.0
"""Arguments that several commands share, and the error for a wrong combination."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from vhostpci_shared.errors import told

from ..config.device import RUN_DIR, check_name
from ..errors import HostError

_Value = TypeVar("_Value")


class Usage(HostError):
    """Arguments that contradict each other, or one of them is missing."""


def add_name(
    parser: argparse.ArgumentParser, text: str = "the device's name", **more: Any
) -> None:
    parser.add_argument(
        "name", type=_checked(check_name), metavar="NAME", help=text, **more
    )


def _checked(parse: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """Wrap a parser so that argparse reports the text of its HostError."""

    def convert(text: str) -> _Value:
        try:
            return parse(text)
        except HostError as error:
            # Of any other exception argparse says only "invalid value".
            raise argparse.ArgumentTypeError(told(error)) from error

    return convert


def run_dir(args: argparse.Namespace) -> Path:
    """Return the directory in which a command looks for the daemon's sockets."""
    return Path(args.run_dir) if args.run_dir else RUN_DIR
