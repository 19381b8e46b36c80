# SPDX-License-Identifier: Apache-2.0
"""What a link costs: processor time, idle and for a Gbit, and memory.

The sides are those of the part "native"; processor time is that of the master, and of
all that serves it.
"""

from collections.abc import Iterator
from functools import partial

from tests.bench import devices
from tests.bench.figures import Figure, in_turn
from tests.bench.native import PEER_NAME, Side, both_sides
from tests.bench.plan import Part, Plan

SECONDS = 2.0
QUICK_SECONDS = 1.0
DEVICES = 50
ALONE = "a daemon for each device"
DIRECTIONS: dict[str, tuple[str, ...]] = {"from": (), "to": ("-R",)}


def _figure(
    name: str, unit: str, runs: tuple[list[float], list[float]], peer: str
) -> Figure:
    return Figure(
        part="cost",
        name=name,
        unit=unit,
        better="lower",
        peer_name=peer,
        ours_runs=tuple(runs[0]),
        peer_runs=tuple(runs[1]),
    )


def processors(plan: Plan, ours: Side, peer: Side) -> Iterator[Figure]:
    """Measure idle sides, and each with TCP in each direction."""
    seconds = QUICK_SECONDS if plan.quick else SECONDS
    idle = in_turn(plan.runs, partial(ours.idle, seconds), partial(peer.idle, seconds))
    ours_idle, peer_idle = ([100 * part for part in side] for side in idle)
    yield _figure("idle, master included", "% CPU", (ours_idle, peer_idle), PEER_NAME)
    for word, options in DIRECTIONS.items():
        traffic = in_turn(
            plan.runs,
            partial(ours.iperf, seconds, *options),
            partial(peer.iperf, seconds, *options),
        )
        our, other = ([one.cost for one in side] for side in traffic)
        yield _figure(f"TCP {word} the master", "s CPU/Gbit", (our, other), PEER_NAME)


def memory(count: int) -> float:
    """Return the KiB that a device adds to a daemon; of a single one, all of it."""
    result = devices.measure(count, "arena", idle=0.1)
    if count == 1:
        return result.connected.pss / devices.KIB
    return result.per_device("pss", result.connected) / devices.KIB


def measure(plan: Plan) -> list[Figure]:
    """Measure all of it."""
    with both_sides() as (ours, peer):
        found = list(processors(plan, ours, peer))
    kib = in_turn(plan.runs, partial(memory, DEVICES), partial(memory, 1))
    return [*found, _figure(f"a device, one of {DEVICES}", "KiB", kib, ALONE)]


PART = Part("cost", "processor time and memory that a link takes", measure)
