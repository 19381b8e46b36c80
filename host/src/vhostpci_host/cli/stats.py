# SPDX-License-Identifier: Apache-2.0
"""The command `stats`: what has crossed each device, by what its agent counts.

The names are those that Open vSwitch has for an interface, seen from the master's card,
as those of the rings are: rx is what the master receives.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

from vhostpci_shared.terminal import Styled, Terminal, add_color
from vhostpci_shared.units import count

from ..config import options
from ..daemon import control_client
from ..errors import HostError
from ..interfaces import FAILED, Json
from .arguments import add_name, run_dir
from .manage import ask_status, status_of_all

NAMES = {
    "packets": "packets",
    "bytes": "bytes",
    "drops": "dropped",
    "kicks": "kicks",
    "calls": "calls",
}
"""The counters of a ring in the status, and what they are called behind rx_ and tx_."""


def add_stats(parser: argparse.ArgumentParser) -> None:
    add_name(parser, nargs="?")
    options.add_to(parser, options.RUN_DIR)
    parser.add_argument(
        "--clear",
        action="store_true",
        help="count from now on, for all who use this command; status and metrics go "
        "on as before",
    )
    parser.add_argument("-j", "--json", action="store_true", help="print JSON")
    add_color(parser)
    parser.set_defaults(run=_stats)


def _stats(args: argparse.Namespace) -> None:
    directory = run_dir(args)
    if args.name:
        statuses, failed = [ask_status(directory, args.name)], 0
    else:
        statuses, failed = status_of_all(directory)
        statuses = [one for one in statuses if one["state"] != FAILED]
    if args.clear:
        for one in statuses:
            _clear(directory, one["name"])
    else:
        _show([statistics(one) for one in statuses], args)
    if failed:
        raise HostError(
            f"{failed} of the devices and daemons did not answer", code="H023"
        )


def _clear(directory: Path, name: str) -> None:
    request = {"command": "clear", "name": name}
    control_client.ask(directory / f"{name}.control", request)
    print(f"{name}: counts from now on")


def _show(found: list[Json], args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(found, indent=2))
        return
    terminal = Terminal.of(color=args.color)
    print("\n".join(line for one in found for line in lines(one, terminal)) or _NONE)


_NONE = "no devices"


def statistics(status: Json) -> Json:
    """Return the counters of a device, by its status.

    Raises:
        HostError: the device failed, and nothing counts.
    """
    if status["state"] == FAILED:
        raise HostError(f"{status['name']}: failed: {status['reason']}", code="H024")
    agent, base = status["agent"], status.get("cleared")
    rings = [ring["agent"] or {} for ring in status["rings"]]
    before = _before(base, agent, rings)
    counted = [
        {name: ring.get(name, 0) - less.get(name, 0) for name in NAMES}
        for ring, less in zip(rings, before, strict=True)
    ]
    pairs = [_named(counted[at : at + 2]) for at in range(0, len(counted), 2)]
    return {
        "name": status["name"],
        "state": status["state"],
        "since": base["at"] if base and any(before) else None,
        "not_counted": agent.get("not_counted", []),
        "statistics": {name: sum(one[name] for one in pairs) for name in _named([])},
        "queue_pairs": [
            {"pair": number, "statistics": one} for number, one in enumerate(pairs)
        ],
    }


def _before(base: Json | None, agent: Json, rings: list[Json]) -> list[Json]:
    """Return what to subtract from each ring's counters."""
    none: list[Json] = [{} for _ in rings]
    # A daemon of an earlier version clears nothing.  Another agent, and one that has
    # made its data plane again, has begun at 0.
    if not base or base["instance"] != agent.get("instance"):
        return none
    before: list[Json] = base["rings"]
    falls = any(
        ring.get(name, 0) < less[name]
        for ring, less in zip(rings, before, strict=False)
        for name in NAMES
    )
    return none if falls or len(before) != len(rings) else before


def _named(rings: list[Json]) -> Json:
    """Return the counters of a queue pair: its receive ring, and its transmit ring."""
    ways = dict(zip(("rx", "tx"), rings or ({}, {}), strict=True))
    return {
        f"{way}_{NAMES[name]}": ring.get(name, 0)
        for way, ring in ways.items()
        for name in NAMES
    }


def lines(device: Json, terminal: Terminal) -> Iterator[str]:
    """Yield the lines for people."""
    head = [Styled(device["name"], "name"), device["state"]]
    if device["since"] is not None:
        at = time.localtime(device["since"])
        head.append(f"since {time.strftime('%F %T', at)}")
    yield "  ".join(map(terminal.paint, head))
    counters, unknown = device["statistics"], device["not_counted"]
    rows = []
    for name, shown in NAMES.items():
        values = (counters[f"{way}_{shown}"] for way in ("rx", "tx"))
        cells = ("-" if name in unknown else count(one) for one in values)
        rows.append([shown, *cells])
    yield from terminal.table(rows, ("COUNTER", "RX", "TX"), indent=2, right=(1, 2))
