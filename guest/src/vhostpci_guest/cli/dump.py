# SPDX-License-Identifier: Apache-2.0
"""The command `dump`: a device's metadata and rings, decoded.

The agent copies the bytes: only it has the windows mapped, and for several bindings no
other process can.  This process decodes them, so the agent's loop does little.
"""

import argparse
import json
from base64 import b64decode
from typing import Any

from vhostpci_shared.dump import report, text
from vhostpci_shared.dump.guest_memory import Unreadable
from vhostpci_shared.metadata import SLAVE_ID
from vhostpci_shared.terminal import Terminal, add_color

from .. import status_socket
from ..errors import Unusable
from ..serve.questions import MOST
from .served import find, one_device


def add_dump(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Reads copies while everything goes on; nothing is changed."
    one_device(parser)
    parser.add_argument(
        "--ring",
        type=int,
        metavar="N",
        help="only this vring, with all of its descriptors",
    )
    parser.add_argument("-j", "--json", action="store_true", help="as JSON")
    add_color(parser)
    parser.set_defaults(run=_dump)


def _dump(arguments: argparse.Namespace) -> None:
    link = find(arguments.name)
    try:
        found = report.dump(AgentWindows(link), arguments.ring)
    except Unreadable as why:
        raise Unusable(f"{arguments.name}: {why}", code=why.code) from None
    if arguments.json:
        print(json.dumps({"name": link["name"], **found}, indent=2))
    else:
        terminal = Terminal.of(color=arguments.color)
        print("\n".join(text.lines(found, terminal)))


class AgentWindows:
    """The windows of a device, which its agent copies from (a `Windows`).

    Args:
        link: the device's entry of the status.
    """

    def __init__(self, link: dict[str, Any]) -> None:
        self._pid, self._device = link["pid"], link["device"]
        self._sizes = {one["id"]: one["size"] for one in link["windows"]}
        # An agent of an earlier version does not say how large its own window is, and
        # refuses to copy anyway.
        self._sizes[SLAVE_ID] = link.get("window_size", 1 << 16)

    def size(self, window: int) -> int | None:
        return self._sizes.get(window)

    def read(self, window: int, offset: int, length: int) -> bytes:
        ends = range(offset, offset + length, MOST)
        pieces = (
            self._piece(window, at, min(MOST, offset + length - at)) for at in ends
        )
        return b"".join(pieces)

    def _piece(self, window: int, offset: int, length: int) -> bytes:
        question = {
            "command": "read",
            "device": self._device,
            "window": window,
            "offset": offset,
            "length": length,
        }
        answer = status_socket.request(self._pid, question)
        data = b64decode(answer["data"])
        if len(data) != length:
            raise Unreadable(
                f"the agent sent {len(data)} bytes instead of {length}", code="G006"
            )
        return data
