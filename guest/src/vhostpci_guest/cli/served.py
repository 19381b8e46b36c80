# SPDX-License-Identifier: Apache-2.0
"""The argument NAME of commands about one device, and the device that it names."""

import argparse
from typing import Any

from .. import status_socket
from ..errors import Unusable


def one_device(parser: argparse.ArgumentParser) -> None:
    """Add the argument NAME."""
    parser.add_argument(
        "name",
        metavar="NAME",
        help="the device: its name, its TAP, or its PCI address or socket",
    )


def find(name: str) -> dict[str, Any]:
    """Return the status of the device of this name, TAP, or PCI address or socket.

    Raises:
        Unusable: no agent that answers serves it.
    """
    links, problems = status_socket.ask()
    for link in links:
        if name in (link["name"], link["tap"], link["device"]):
            return link
    if problems:
        raise status_socket.missing(problems)
    there = ", ".join(str(link["name"] or link["device"]) for link in links)
    raise Unusable(
        f"no agent serves {name}; served: {there or 'no device'}", code="G030"
    )
