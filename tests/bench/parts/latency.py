# SPDX-License-Identifier: Apache-2.0
"""How long a response takes, idle and under load: ../responders.py.

Ours and QEMU's own TAP lead into the same VM; a TAP with a program that answers behind
it is the least that any way through a TAP takes.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.bench.compiling import COMMON, HERE, compile_object, link, require
from tests.bench.figures import Better, Figure, in_rounds
from tests.bench.plan import CannotMeasure, Part, Plan
from tests.bench.requests import HALVINGS, Client, Sample, Search
from tests.bench.responders import (
    ALONE,
    ALONE_POLLING,
    OURS,
    POLLING,
    VM_TAP,
    Programs,
    responders,
)
from tests.fakes.netns import private_network
from tests.vm.channel import GuestError

SECONDS = 1.0
QUICK_SECONDS = 0.25
IDLE_RATE = 1000.0
"""Requests a second that stand for no load."""
LOADS = {"idle": 0.0, "half load": 0.5, "90 % load": 0.9}
PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}
PAIRS = {
    "": ((OURS, VM_TAP), (OURS, ALONE)),
    "polling, ": ((POLLING, VM_TAP), (POLLING, ALONE_POLLING)),
}
"""By what is put before a figure's name: who is compared with whom."""
SEARCHED = (OURS, POLLING, VM_TAP)
"""Whose highest rate is looked for."""


@dataclass(frozen=True, slots=True)
class Found:
    """What all rounds have measured, by the name of who answered."""

    rates: Mapping[str, Sequence[float]]
    samples: Mapping[str, Mapping[str, Sequence[Sample]]]
    """By load."""


def measure_rounds(plan: Plan, clients: Mapping[str, Client]) -> Found:
    """Measure everyone at the same rates: parts of the lowest of the highest ones."""
    halvings = 1 if plan.quick else HALVINGS
    search = {name: Search(clients[name], halvings) for name in SEARCHED}
    rates = in_rounds(plan.runs, search)
    highest = min(float(np.median(found)) for found in rates.values())
    seconds = QUICK_SECONDS if plan.quick else SECONDS
    samples = {}
    for load, part in LOADS.items():
        rate = part * highest or IDLE_RATE
        send = {
            name: partial(client, rate, seconds) for name, client in clients.items()
        }
        samples[load] = in_rounds(plan.runs, send)
    return Found(rates, samples)


def figures(found: Found) -> Iterator[Figure]:
    """Return the figures of all pairs: highest rates, then percentiles."""
    for mode, pairs in PAIRS.items():
        ours, peer = pairs[0]
        yield _figure(
            f"{mode}without loss, beside {peer}",
            *("requests/s", "higher", peer),
            [found.rates[side] for side in (ours, peer)],
        )
        for ours, peer in pairs:
            for load, samples in found.samples.items():
                sides = [samples[side] for side in (ours, peer)]
                yield from _percentiles(f"{mode}{load}", peer, sides)


def _percentiles(
    name: str, peer: str, sides: Sequence[Sequence[Sample]]
) -> Iterator[Figure]:
    for word, percentile in PERCENTILES.items():
        runs = [[sample.percentile(percentile) for sample in side] for side in sides]
        yield _figure(f"{name}, {word}, beside {peer}", "us", "lower", peer, runs)


def _figure(
    name: str, unit: str, better: Better, peer: str, runs: Sequence[Sequence[float]]
) -> Figure:
    ours, other = map(tuple, runs)
    return Figure(
        part="latency",
        name=name,
        unit=unit,
        better=better,
        peer_name=peer,
        ours_runs=ours,
        peer_runs=other,
    )


def build(directory: Path) -> Programs:
    """Compile the program, for this machine and for a guest."""
    require("gcc")
    echo = compile_object(HERE / "echo.c", COMMON, directory)
    return Programs(
        link([echo], directory / "echo"),
        link([echo], directory / "echo-guest", flags=["-static"]),
    )


def measure(plan: Plan) -> list[Figure]:
    """Start all that answer, and measure."""
    if os.geteuid():
        raise CannotMeasure("it makes network namespaces and TAPs, which needs root")
    require("qemu-system-x86_64", "ip")
    with private_network(), TemporaryDirectory(prefix="vhp-bench-") as temporary:
        programs = build(Path(temporary))
        try:
            with responders(programs, Path(temporary)) as clients:
                return list(figures(measure_rounds(plan, clients)))
        except GuestError as error:
            raise CannotMeasure(str(error)) from error


PART = Part("latency", "how long a response takes, idle and under load", measure)
