# SPDX-License-Identifier: Apache-2.0
"""The command `top`: what crosses each ring now, by what the agents count."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from vhostpci_shared import top
from vhostpci_shared.top import COUNTS, Device, Ring
from vhostpci_shared.units import confined

from ..config import options
from ..errors import HostError
from ..interfaces import Json
from . import vms
from .arguments import add_name, run_dir
from .manage import all_names, ask_status


def add_top(parser: argparse.ArgumentParser) -> None:
    add_name(parser, nargs="?")
    options.add_to(parser, options.RUN_DIR)
    top.add_options(parser)
    parser.set_defaults(run=_top)


def _top(args: argparse.Namespace) -> None:
    directory = run_dir(args)

    def look() -> list[Device]:
        return list(_devices(directory, args.name))

    top.show(top.Top("vhostpci-host", look, (HostError,)), args)


def _devices(directory: Path, name: str | None) -> Iterator[Device]:
    names = [name] if name else sorted(all_names(directory))
    if not names:
        raise HostError(f"no device in {directory}: see --run-dir", code="H025")
    for one in names:
        try:
            yield _device(ask_status(directory, one))
        except HostError as error:
            # The others are shown; this one alone is what the user asked for.
            if len(names) == 1:
                raise
            yield Device(one, "no answer", str(error))


def _device(status: Json) -> Device:
    unknown = (status.get("agent") or {}).get("not_counted", ())
    ends = [
        vms.look(end["pid"]).name or str(end["pid"]) if end else "-"
        for end in (status.get("master"), status.get("slave"))
    ]
    about = f"master {ends[0]}, slave {ends[1]}"
    if found := status.get("confined"):
        about = f"confined {confined(found)}, {about}"
    return Device(
        status["name"],
        status["state"],
        status.get("reason") or about,
        tuple(_ring(ring, unknown) for ring in status.get("rings", ())),
    )


def _ring(ring: Json, unknown: list[str]) -> Ring:
    # None if the agent's entry is nonsense.
    said = ring["agent"] or {}
    counts = {name: None if name in unknown else said.get(name) for name in COUNTS}
    return Ring(ring["queue"], ring["size"], ring.get("fill"), counts)
