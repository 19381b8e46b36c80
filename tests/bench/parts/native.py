# SPDX-License-Identifier: Apache-2.0
"""The whole way without emulation: User Mode Linux beside its own TAP driver.

And UDP with segments (USO) beside UDP without, over a driver of ours in C: User Mode
Linux's is of Linux 6.1 and knows no USO.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.card import USO, linked
from tests.bench.figures import Figure, in_turn
from tests.bench.native import PEER_NAME, both_sides
from tests.bench.plan import Part, Plan
from tests.fakes.frontend import NO_FEATURES

SECONDS = 2.0
QUICK_SECONDS = 1.0
USO_SECONDS = 1.0
QUICK_USO_SECONDS = 0.4
WITHOUT_USO = "the same link without USO"
CASES: dict[str, tuple[str, ...]] = {
    "TCP from the master": (),
    "TCP to the master": ("-R",),
    "UDP from the master, 1,400 bytes": ("-u", "-b 0", "-l 1400"),
}
"""By name: options of iperf3."""


def segments(plan: Plan) -> Iterator[Figure]:
    """Measure UDP of 1,500 bytes in segments of 64 KiB, and without USO."""
    seconds = QUICK_USO_SECONDS if plan.quick else USO_SECONDS
    with ExitStack() as stack:
        temporary = TemporaryDirectory(prefix="vhp-bench-")
        directory = Path(stack.enter_context(temporary))
        ours, peer = (
            stack.enter_context(linked(directory / name, without=without))
            for name, without in (("uso", NO_FEATURES), ("without", USO))
        )
        for word, from_master in (("from", True), ("to", False)):
            runs = in_turn(
                plan.runs,
                partial(ours.gigabits, seconds, from_master=from_master),
                partial(peer.gigabits, seconds, from_master=from_master),
            )
            yield Figure(
                part="native",
                name=f"UDP {word} the master, 1,500 bytes, USO",
                unit="Gbit/s",
                better="higher",
                peer_name=WITHOUT_USO,
                ours_runs=tuple(runs[0]),
                peer_runs=tuple(runs[1]),
            )


def measure(plan: Plan) -> list[Figure]:
    """Measure all cases."""
    return [*whole_way(plan), *segments(plan)]


def whole_way(plan: Plan) -> list[Figure]:
    """Measure User Mode Linux with both kinds of card."""
    seconds = QUICK_SECONDS if plan.quick else SECONDS
    found: list[Figure] = []
    with both_sides() as (ours, peer):
        for name, words in CASES.items():
            traffic = in_turn(
                plan.runs,
                partial(ours.iperf, seconds, *words),
                partial(peer.iperf, seconds, *words),
            )
            found.append(
                Figure(
                    part="native",
                    name=name,
                    unit="Gbit/s",
                    better="higher",
                    peer_name=PEER_NAME,
                    ours_runs=tuple(one.rate for one in traffic[0]),
                    peer_runs=tuple(one.rate for one in traffic[1]),
                )
            )
    return found


PART = Part("native", "the whole way to and from a master that is a process", measure)
