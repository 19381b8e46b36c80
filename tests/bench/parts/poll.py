# SPDX-License-Identifier: Apache-2.0
"""What an agent gains by --poll-us, and what that costs, beside one that sleeps.

    ping ── vp0 ── vhostpci-guest ── User Mode Linux

One request after the other: the next one is sent when the response has come.  All
masters run all the time, and one of them has something to do.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.bench.compiling import require
from tests.bench.figures import Figure, in_rounds
from tests.bench.native import threads_seconds
from tests.bench.plan import CannotMeasure, Part, Plan
from tests.fakes.netns import private_network
from tests.frontends.uml import UserModeLinux, card
from tests.process.attach import AttachLab
from tests.process.lab import ATTACH, MASTER_ADDRESS

PINGS, QUICK_PINGS = 1000, 200
ASLEEP = "an agent that sleeps"
AGENTS: Mapping[str, tuple[str, ...]] = {
    ASLEEP: (),
    **{f"--poll-us {n}": ("--poll-us", str(n)) for n in (50, 200)},
}
"""By name: options of the agent."""


@dataclass(frozen=True, slots=True)
class Round:
    """What one run has found, in microseconds."""

    trips: tuple[float, ...]
    agent: float
    """Processor time of the agent for a request and its response."""

    def percentile(self, percent: float) -> float:
        """Return the time of a round trip."""
        return float(np.percentile(self.trips, percent))


def round_trips(text: str, count: int) -> tuple[float, ...]:
    """Understand the output of ping.

    Raises:
        CannotMeasure: too few came back.
    """
    trips = [1000 * float(found) for found in re.findall(r"time=([\d.]+) ms", text)]
    # ping does not wait for the last ones, which may be late.
    if len(trips) < count * 0.9:
        raise CannotMeasure(f"{len(trips)} of {count} pings came back")
    return tuple(trips)


def pinged(lab: AttachLab, count: int) -> Round:
    """Ping the master as fast as it answers; return what that took."""
    agent = lab.agent.process.pid
    before = threads_seconds(agent)
    done = lab.run_in_slave("ping", "-n", "-A", "-c", str(count), MASTER_ADDRESS)
    spent = threads_seconds(agent) - before
    return Round(round_trips(done.stdout, count), 1e6 * spent / count)


@contextmanager
def labs() -> Iterator[dict[str, AttachLab]]:
    """Start an agent with each of the options, each with a master."""
    with ExitStack() as stack:
        stack.enter_context(private_network())
        temporary = TemporaryDirectory(prefix="vhp-bench-")
        top = Path(stack.enter_context(temporary))
        found: dict[str, AttachLab] = {}
        for name, options in AGENTS.items():
            directory = top / str(len(found))
            directory.mkdir()
            lab = found[name] = stack.enter_context(AttachLab(directory))
            lab.start_daemon(*ATTACH)
            lab.start_agent(*options)
            lab.wait_carrier("NO-CARRIER")
            stack.enter_context(UserModeLinux(card(lab.socket), directory)).up()
            lab.wait_carrier("UP")
        yield found


def figures(name: str, ours: Sequence[Round], peer: Sequence[Round]) -> list[Figure]:
    """Compare an agent that polls with one that sleeps."""

    def one(what: str, runs: list[tuple[float, ...]]) -> Figure:
        return Figure(
            part="poll",
            name=f"{name}: {what}",
            unit="us",
            better="lower",
            peer_name=ASLEEP,
            ours_runs=runs[0],
            peer_runs=runs[1],
        )

    sides = (ours, peer)
    trips = [
        one(
            f"round trip, p{percent}",
            [tuple(run.percentile(percent) for run in side) for side in sides],
        )
        for percent in (50, 99)
    ]
    agent = [tuple(run.agent for run in side) for side in sides]
    return [*trips, one("processor time of the agent for it", agent)]


def measure(plan: Plan) -> list[Figure]:
    """Ping all masters in turn.

    Raises:
        CannotMeasure: we are not root, or there is no User Mode Linux.
    """
    if os.geteuid():
        raise CannotMeasure("it makes network namespaces and TAPs, which needs root")
    require("linux.uml", "ping", "ip")
    count = QUICK_PINGS if plan.quick else PINGS
    with labs() as found:
        for lab in found.values():
            lab.ping_from_slave()
        runs = in_rounds(
            plan.runs,
            {name: partial(pinged, lab, count) for name, lab in found.items()},
        )
    return [
        figure
        for name in AGENTS
        if name != ASLEEP
        for figure in figures(name, runs[name], runs[ASLEEP])
    ]


PART = Part("poll", "what an agent that polls gains, and what that costs", measure)
