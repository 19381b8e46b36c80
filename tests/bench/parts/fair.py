# SPDX-License-Identifier: Apache-2.0
"""How long a ping takes beside a bulk transfer, in either direction.

The sides are those of the part "native".  A pass of the ring driver serves a direction
until so many bytes or chains are handled (NET_BATCH_BYTES, NET_BATCH): the ping, which
needs both, waits for that.
"""

import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from tests.bench.figures import Better, Figure, Floats, in_turn
from tests.bench.native import PEER_NAME, Side, both_sides
from tests.bench.plan import CannotMeasure, Part, Plan
from tests.process.lab import MASTER_ADDRESS

SECONDS = 3.0
QUICK_SECONDS = 1.5
LEAD = 0.4
"""Seconds of bulk transfer before the first ping, and after the last."""
INTERVAL = 0.005
DIRECTIONS: dict[str, tuple[str, ...]] = {"from": (), "to": ("-R",)}
PERCENTILES = {"p50": 50.0, "p99": 99.0}


@dataclass(frozen=True, slots=True)
class Sample:
    """One run: the round trips of the pings, and what was transferred beside them."""

    microseconds: Floats
    rate: float
    """Gbit/s."""

    def percentile(self, part: float) -> float:
        """Return the round trip that so many percent do not exceed."""
        return float(np.percentile(self.microseconds, part))


def round_trips(text: str) -> Floats:
    """Return the round trips, in microseconds, that ping has printed."""
    times = re.findall(r"time=([\d.]+) ms", text)
    return 1000 * np.array(times, dtype=np.float64)


def beside(side: Side, seconds: float, *words: str) -> Sample:
    """Ping the master while TCP flows from it, or as `words` say.

    Raises:
        CannotMeasure: no ping came back.
    """
    count = int((seconds - 2 * LEAD) / INTERVAL)
    # The TAP is in the network namespace of the last of a side's programs.
    argv = ("nsenter", f"--net=/proc/{side.programs[-1]}/ns/net")
    pings = f"sleep {LEAD}; exec ping -n -i {INTERVAL} -c {count} {MASTER_ADDRESS}"
    with subprocess.Popen(
        [*argv, "sh", "-c", pings], stdout=subprocess.PIPE, text=True
    ) as ping:
        traffic = side.iperf(seconds, *words)
        ping.send_signal(signal.SIGINT)  # it reports, and ends
        output, _ = ping.communicate()
    found = round_trips(output)
    if not len(found):
        raise CannotMeasure(f"no ping came back beside TCP: {output}")
    return Sample(found, traffic.rate)


def _figure(
    name: str, unit: str, better: Better, runs: tuple[list[float], list[float]]
) -> Figure:
    return Figure(
        part="fair",
        name=name,
        unit=unit,
        better=better,
        peer_name=PEER_NAME,
        ours_runs=tuple(runs[0]),
        peer_runs=tuple(runs[1]),
    )


def both(plan: Plan, ours: Side, peer: Side) -> Iterator[Figure]:
    """Measure both directions."""
    seconds = QUICK_SECONDS if plan.quick else SECONDS
    for word, options in DIRECTIONS.items():
        samples = in_turn(
            plan.runs,
            partial(beside, ours, seconds, *options),
            partial(beside, peer, seconds, *options),
        )
        beside_it = f"TCP {word} the master"
        for name, part in PERCENTILES.items():
            us, others = ([one.percentile(part) for one in side] for side in samples)
            yield _figure(
                f"ping beside {beside_it}, {name}", "us", "lower", (us, others)
            )
        us, others = ([one.rate for one in side] for side in samples)
        yield _figure(f"{beside_it}, beside a ping", "Gbit/s", "higher", (us, others))


def measure(plan: Plan) -> list[Figure]:
    """Measure both directions on both sides."""
    with both_sides() as (ours, peer):
        return list(both(plan, ours, peer))


PART = Part("fair", "a ping beside a bulk transfer, in each direction", measure)
