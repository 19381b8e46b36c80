# SPDX-License-Identifier: Apache-2.0
"""The whole way without emulation: User Mode Linux beside its own TAP driver."""

from functools import partial

from tests.bench.figures import Figure, in_turn
from tests.bench.native import PEER_NAME, both_sides
from tests.bench.plan import Part, Plan

SECONDS = 3.0
QUICK_SECONDS = 1.0
CASES: dict[str, tuple[str, ...]] = {
    "TCP from the master": (),
    "TCP to the master": ("-R",),
    "UDP from the master, 1,400 bytes": ("-u", "-b 0", "-l 1400"),
}
"""By name: options of iperf3."""


def measure(plan: Plan) -> list[Figure]:
    """Measure all cases."""
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
