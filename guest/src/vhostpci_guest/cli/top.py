# SPDX-License-Identifier: Apache-2.0
"""The command `top`: what crosses each ring now."""

import argparse
from collections.abc import Iterator
from typing import Any

from vhostpci_shared import top
from vhostpci_shared.top import Device, Ring

from .. import status_socket
from ..errors import Unusable


def add_top(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="only this device: its name, its TAP, or its PCI address or socket",
    )
    top.add_options(parser)
    parser.set_defaults(run=_top)


def _top(arguments: argparse.Namespace) -> None:
    def look() -> list[Device]:
        return list(_devices(arguments.name))

    made = top.Top("vhostpci-guest", look, (Unusable, OSError))
    top.show(made, arguments)


def _devices(name: str | None) -> Iterator[Device]:
    links, problems = status_socket.ask()
    chosen = [
        one for one in links if name in (None, one["name"], one["tap"], one["device"])
    ]
    # Those that answer are shown, and the others are back when they answer again.
    if problems and not chosen:
        raise status_socket.missing(problems)
    if not chosen:
        raise Unusable(
            f"no agent serves {name}" if name else "no agent serves a device",
            code="G033",
        )
    for link in chosen:
        port = link["tap"] or link.get("socket") or "no TAP yet"
        rings = tuple(_ring(one, link) for one in link["rings"])
        # Devices of several daemons may have one name.
        key = f"{link['pid']} {link['device']}"
        name = link["name"] or link["device"]
        yield Device(name, link["state"], port, rings, key)


def _ring(ring: dict[str, Any], link: dict[str, Any]) -> Ring:
    # VIRTIO, "Network Device", "Virtqueues".  As `stats` has it: seen from this slave.
    way = "tx" if ring["ring"] % 2 == 0 else "rx"
    unknown = link.get("not_counted", ())
    names = {"packets": "packets", "bytes": "octets", "drops": "drops"}
    names |= {"kicks": "kicks", "calls": "calls"}
    counts = {one: None if key in unknown else ring[key] for one, key in names.items()}
    return Ring(
        f"{way}{ring['ring'] // 2}", ring.get("size", 0), ring.get("fill"), counts
    )
