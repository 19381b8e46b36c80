# SPDX-License-Identifier: Apache-2.0
"""What it costs that a master is confined: the same master, ordinary, is the peer.

    confined master ─── vhostpci-host ─── the agent, a process
    ordinary master ─── vhostpci-host ─── the agent, a process

Both run the same kernel, and wait while the other has its turn.  The bounce copy is the
master's work: its processor time is that of its QEMU's process.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.compiling import require
from tests.bench.figures import Better, Figure, in_turn
from tests.bench.plan import CannotMeasure, Part, Plan
from tests.vm import confined, qemu, traffic
from tests.vm.channel import GuestError
from tests.vm.confined import Link
from tests.vm.harness import processor_time_of_all
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS

PEER_NAME = "the same master, not confined"
MBIT_OF_GBIT = 1000


@dataclass(frozen=True, slots=True)
class Turn:
    """What one master has reached in one turn."""

    ping: float
    """Milliseconds."""
    tcp_from: float
    """Mbit/s from the master."""
    tcp_to: float
    cost_from: float
    """Seconds of processor time that a Gbit from the master took its QEMU."""
    cost_to: float


METRICS: dict[str, tuple[str, Better, Callable[[Turn], float]]] = {
    "ping": ("ms", "lower", lambda one: one.ping),
    "TCP from the master": ("Mbit/s", "higher", lambda one: one.tcp_from),
    "TCP to the master": ("Mbit/s", "higher", lambda one: one.tcp_to),
    "master's processor, from": ("s CPU/Gbit", "lower", lambda one: one.cost_from),
    "master's processor, to": ("s CPU/Gbit", "lower", lambda one: one.cost_to),
}


def _stream(link: Link, seconds: int, *, back: bool) -> tuple[float, float]:
    """Return Mbit/s, and what a Gbit cost the master; `back`: from the master."""
    before = processor_time_of_all(link.master.pid)
    rate = traffic.tcp(link.slave, MASTER_ADDRESS, seconds, back=back)
    spent = processor_time_of_all(link.master.pid) - before
    return rate, spent / (rate * seconds / MBIT_OF_GBIT)


def turn(link: Link, plan: Plan) -> Turn:
    """Measure one master, whose iperf3 listens."""
    seconds, pings = (1, 10) if plan.quick else (3, 20)
    # What it does while the other has its turn is cold again.
    traffic.tcp(link.slave, MASTER_ADDRESS, 1)
    ping = traffic.ping(
        link.master, SLAVE_ADDRESS, pings, "-i 0.05", apart=True
    ).rtt_ms_avg
    if ping is None:
        raise CannotMeasure("no ping of the master's comes back")
    tcp_from, cost_from = _stream(link, seconds, back=True)
    tcp_to, cost_to = _stream(link, seconds, back=False)
    return Turn(ping, tcp_from, tcp_to, cost_from, cost_to)


@contextmanager
def both() -> Iterator[tuple[Link, Link]]:
    """Boot a confined master, and an ordinary one."""
    with ExitStack() as stack:
        logs = Path(stack.enter_context(TemporaryDirectory()))
        links = (
            stack.enter_context(confined.linked(logs / "confined")),
            stack.enter_context(confined.ordinary(logs / "ordinary")),
        )
        for link in links:
            stack.enter_context(traffic.iperf_server(link.master))
        yield links


def measure(plan: Plan) -> list[Figure]:
    """Boot, and measure."""
    if os.geteuid():
        raise CannotMeasure("it makes network namespaces and TAPs, which needs root")
    require("qemu-system-x86_64", "ip", "iperf3")
    print(f"QEMU {qemu.version()}, {'KVM' if qemu.has_kvm() else 'TCG, no KVM'}")
    try:
        with both() as (ours, peer):
            turns = in_turn(
                plan.runs, partial(turn, ours, plan), partial(turn, peer, plan)
            )
    except GuestError as error:
        raise CannotMeasure(str(error)) from error
    return [
        Figure(
            part="confined",
            name=name,
            unit=unit,
            better=better,
            peer_name=PEER_NAME,
            ours_runs=tuple(map(value, turns[0])),
            peer_runs=tuple(map(value, turns[1])),
        )
        for name, (unit, better, value) in METRICS.items()
    ]


PART = Part("confined", "what it costs that a master is confined", measure)
