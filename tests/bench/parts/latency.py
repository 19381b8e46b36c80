# SPDX-License-Identifier: Apache-2.0
"""How long a response takes, idle and under load, beside the TAP alone.

ours        client (namespace) ── vp0 ── vhostpci-guest ── DPDK's testpmd, which answers
the peer    client (namespace) ── tap0 ── echo.c, which answers

testpmd polls; so the time that it adds is short, and what remains is ours.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.bench.compiling import COMMON, HERE, compile_object, link, require
from tests.bench.figures import Better, Figure, Floats, in_turn
from tests.bench.plan import CannotMeasure, Part, Plan
from tests.fakes.netns import private_network
from tests.frontends.testpmd import MAC, Testpmd
from tests.process.attach import AttachLab
from tests.process.lab import ATTACH, MASTER_ADDRESS, SLAVE_ADDRESS, SLAVE_TAP
from tests.process.program import Program
from tests.vm.netns import Namespace

PEER_TAP = "tap0"
PORT = 7
SECONDS = 2.0
QUICK_SECONDS = 0.5
PROBE_SECONDS = 0.3
IDLE_RATE = 1000.0
"""Requests a second that stand for no load: one is answered before the next is sent."""
LOADS = {"idle": 0.0, "half load": 0.5, "90 % load": 0.9}
MODES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "": ((), ()),
    "polling, ": (("--poll-us", "1000"), ("spin",)),
}
"""By what is put before a figure's name: options of the agent, and of the peer."""
PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9}
LOSS = 0.002
"""Part of the requests that a rate without loss may lose."""
LOWEST_RATE = 250.0
FIRST_RATE = 4000.0
HIGHEST_RATE = 1_024_000.0
HALVINGS = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run of the client has seen."""

    sent: int
    microseconds: Floats

    @classmethod
    def parse(cls, text: str) -> "Sample":
        """Understand the client's line."""
        sent, *times = text.split()
        return cls(int(sent), np.array(times, dtype=np.float64) / 1000)

    @property
    def loss(self) -> float:
        """Part of the requests without a response."""
        return 1 - len(self.microseconds) / self.sent if self.sent else 1.0


Client = Callable[[float, float], Sample]
"""Sends so many requests a second, for so many seconds."""


def lossless(send: Client) -> float:
    """Find the highest rate at which nothing is lost.

    Raises:
        CannotMeasure: packets are lost at any rate.
    """
    low = FIRST_RATE
    while not _holds(send, low):
        low /= 2
        if low < LOWEST_RATE:
            raise CannotMeasure(f"requests are lost at {2 * low:.0f} a second")
    high = 2 * low
    while high <= HIGHEST_RATE and _holds(send, high):
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _holds(send, middle):
            low = middle
        else:
            high = middle
    return low


def _holds(send: Client, rate: float) -> bool:
    """Whether nothing is lost; what is lost once may be the machine's fault."""
    return any(send(rate, PROBE_SECONDS).loss <= LOSS for _ in range(2))


def client(program: Path, prefix: list[str], rate: float, seconds: float) -> Sample:
    """Run the client in a network namespace."""
    words = (MASTER_ADDRESS, str(PORT), f"{rate:.0f}", f"{seconds:g}")
    done = subprocess.run(
        [*prefix, str(program), "client", *words],
        check=True,
        capture_output=True,
        text=True,
    )
    return Sample.parse(done.stdout)


@contextmanager
def ours(program: Path, directory: Path, *options: str) -> Iterator[Client]:
    """Our device, with testpmd as the master, and options of the agent."""
    with AttachLab(directory) as lab:
        lab.start_daemon(*ATTACH)
        lab.start_agent(*options)
        lab.wait_carrier("NO-CARRIER")
        with Testpmd(lab.socket, directory, forward="5tswap") as pmd:
            pmd.started()
            lab.wait_carrier("UP")
            lab.slave.run(neighbour(SLAVE_TAP))
            yield partial(client, program, lab.slave.prefix)


@contextmanager
def peer(program: Path, directory: Path, *options: str) -> Iterator[Client]:
    """A TAP, and the program that answers, with its options."""
    with ExitStack() as stack:
        namespace = stack.enter_context(Namespace())
        answers = [*namespace.prefix, str(program), "tap", PEER_TAP, *options]
        echo = Program(answers, directory / "echo.log")
        stack.callback(echo.close)
        echo.wait_log("ready")
        namespace.run(f"ip addr add {SLAVE_ADDRESS}/24 dev {PEER_TAP}")
        namespace.run(f"ip link set {PEER_TAP} up")
        namespace.run(neighbour(PEER_TAP))
        yield partial(client, program, namespace.prefix)


def neighbour(tap: str) -> str:
    """Return a command after which nothing asks for the master's MAC."""
    return f"ip neigh replace {MASTER_ADDRESS} lladdr {MAC} dev {tap}"


def figures(load: str, samples: tuple[list[Sample], list[Sample]]) -> Iterator[Figure]:
    """Return a figure for each percentile."""
    for name, percentile in PERCENTILES.items():
        runs = [
            tuple(float(np.percentile(s.microseconds, percentile)) for s in side)
            for side in samples
        ]
        yield _figure(f"{load}, {name}", "us", "lower", *runs)


def _figure(
    name: str,
    unit: str,
    better: Better,
    ours_runs: tuple[float, ...],
    peer_runs: tuple[float, ...],
) -> Figure:
    return Figure(
        part="latency",
        name=name,
        unit=unit,
        better=better,
        peer_name="a program that answers behind a TAP",
        ours_runs=ours_runs,
        peer_runs=peer_runs,
    )


def measure_sides(plan: Plan, mode: str, our: Client, other: Client) -> list[Figure]:
    """Measure both at the same rates: parts of the lower one of their highest."""
    rates = in_turn(plan.runs, partial(lossless, our), partial(lossless, other))
    found = [_figure(f"{mode}without loss", "requests/s", "higher", *map(tuple, rates))]
    highest = min(float(np.median(side)) for side in rates)
    seconds = QUICK_SECONDS if plan.quick else SECONDS
    for load, part in LOADS.items():
        rate = max(IDLE_RATE, part * highest)
        send = [partial(side, rate, seconds) for side in (our, other)]
        found += figures(mode + load, in_turn(plan.runs, *send))
    return found


def measure(plan: Plan) -> list[Figure]:
    """Start both sides, for each mode, and measure."""
    if os.geteuid():
        raise CannotMeasure("it makes network namespaces and TAPs, which needs root")
    require("gcc", "dpdk-testpmd", "ip")
    found: list[Figure] = []
    with private_network(), TemporaryDirectory(prefix="vhp-bench-") as temporary:
        echo = compile_object(HERE / "echo.c", COMMON, Path(temporary))
        program = link([echo], Path(temporary) / "echo")
        for number, (mode, options) in enumerate(MODES.items()):
            places = [Path(temporary) / f"{side}{number}" for side in ("ours", "peer")]
            for place in places:
                place.mkdir()
            with (
                ours(program, places[0], *options[0]) as our,
                peer(program, places[1], *options[1]) as other,
            ):
                found += measure_sides(plan, mode, our, other)
    return found


PART = Part("latency", "how long a response takes, idle and under load", measure)
