# SPDX-License-Identifier: Apache-2.0
"""What each binding and data plane costs and gives: python -m tests.bench.bindings

Boots one master VM and one slave VM, runs the agent with each binding, and each data
plane, in turn, all of them a few times, and prints the medians.  Noise of the machine
comes and goes in minutes: so what is compared was measured in the same round, and only
ratios mean much.
"""

import argparse
import json
import logging
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.vm import pair, qemu, traffic
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, Pair
from tests.vm.show import Progress
from vhostpci_guest.dataplane.kinds import RING, VHOST_NET

BINDINGS = ("sysfs", "uio", "vfio", "kmod")
PLANES = (RING, VHOST_NET)
SETTLED = 2.0
"""Seconds after the last packet until polling has reached its longest pause."""

SMALL_RATE, SMALL = "10M", 64
"""What small packets are sent with, as iperf3 takes it: a rate that all can take, so
that the processor time for it can be compared."""

# Processor time of a process with all its threads, in ticks (proc(5)).
TICKS = "cut -d')' -f2- /proc/{pid}/stat | cut -d' ' -f13,14"


# What all processors have done so far: user, nice, system, idle, ... (proc(5)).
STAT = "head -1 /proc/stat"
IDLE = 3


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to serve: a binding, and what moves the packets."""

    bind: str
    plane: str

    @property
    def name(self) -> str:
        """What the table calls it."""
        return self.bind if self.plane == RING else f"{self.bind}, {self.plane}"


@dataclass(frozen=True, slots=True)
class Plan:
    """The duration of each measurement."""

    rounds: int
    idle: float
    pings: int
    seconds: int


@dataclass(slots=True)
class Figures:
    """What was measured with one binding, a value for each round, or each ping."""

    idle: list[float] = field(default_factory=list)
    """Per cent of one of the slave's processors."""
    rtt: list[float] = field(default_factory=list)
    down: list[float] = field(default_factory=list)
    up: list[float] = field(default_factory=list)
    small: list[float] = field(default_factory=list)
    """Per cent of all sent small packets that arrived."""
    busy: list[float] = field(default_factory=list)
    """Per cent of the slave's processors while small packets come."""
    reads: list[float] = field(default_factory=list)
    """MB/s of the window, as the agent has measured it."""
    own: list[float] = field(default_factory=list)
    """The same of the agent's own memory."""

    def last(self) -> str:
        """The latest values: over the rounds they show what a difference means."""
        return (
            f"idle {self.idle[-1]:.1f} %, TCP to slave {self.down[-1]:.0f} Mbit/s, "
            f"to master {self.up[-1]:.0f} Mbit/s"
        )


def measure(link: Pair, how: Contender, plan: Plan, figures: Figures) -> None:
    """Run the agent in one way, and add a round's values."""
    with link.slave.agent(how.bind, "--data-plane", how.plane):
        link.master.configure()
        link.wait_link()
        time.sleep(SETTLED)
        (status,) = json.loads(link.slave.run("vhostpci-guest status -j").stdout)
        figures.reads.append(status["speed"]["mbps"])
        figures.own.append(status["speed"]["own_mbps"])
        figures.idle.append(_idle(link, status["pid"], plan.idle))
        figures.rtt += _round_trips(link, plan.pings)
        with traffic.iperf_server(link.slave):
            figures.down.append(traffic.tcp(link.master, SLAVE_ADDRESS, plan.seconds))
            _small_packets(link, plan.seconds, figures)
        with traffic.iperf_server(link.master):
            figures.up.append(traffic.tcp(link.slave, MASTER_ADDRESS, plan.seconds))


def _small_packets(link: Pair, seconds: int, figures: Figures) -> None:
    before = _stat(link)
    arrived = traffic.udp(link.master, SLAVE_ADDRESS, seconds, SMALL_RATE, length=SMALL)
    spent = [now - then for now, then in zip(_stat(link), before, strict=True)]
    figures.small.append(100 * arrived / float(SMALL_RATE.removesuffix("M")))
    figures.busy.append(100 - 100 * spent[IDLE] / sum(spent))


def _stat(link: Pair) -> list[int]:
    return [int(word) for word in link.slave.run(STAT).stdout.split()[1:9]]


def _idle(link: Pair, pid: int, seconds: float) -> float:
    """Per cent of a processor that the agent takes when no packet comes."""
    before, began = _ticks(link, pid), time.monotonic()
    time.sleep(seconds)
    used, took = _ticks(link, pid) - before, time.monotonic() - began
    return 100 * used / int(link.slave.run("getconf CLK_TCK").stdout) / took


def _ticks(link: Pair, pid: int) -> int:
    return sum(map(int, link.slave.run(TICKS.format(pid=pid)).stdout.split()))


def _round_trips(link: Pair, count: int) -> list[float]:
    """Milliseconds of each ping from the master, which comes after a pause."""
    output = link.master.run(
        f"ping -n -c {count} -i 0.1 {SLAVE_ADDRESS}", timeout=count * 0.2 + 20
    ).stdout
    return [float(text) for text in re.findall(r"time=([\d.]+) ms", output)]


def table(figures: dict[str, Figures]) -> str:
    """All values, as Markdown; in brackets what they are of the first binding's."""
    names = list(figures)
    rows: list[tuple[str, str, Callable[[list[float]], float], int]] = [
        ("idle agent, % of a processor", "idle", statistics.median, 1),
        ("ping after 0.1 s, fastest, ms", "rtt", min, 2),
        ("ping after 0.1 s, median, ms", "rtt", statistics.median, 2),
        ("TCP master to slave, Mbit/s", "down", statistics.median, 0),
        ("TCP slave to master, Mbit/s", "up", statistics.median, 0),
        ("UDP of 64 bytes, arrived of 10 Mbit/s, %", "small", statistics.median, 0),
        ("slave's processors busy with these, %", "busy", statistics.median, 0),
        ("window reads, MB/s", "reads", statistics.median, 0),
        ("agent's own memory reads, MB/s", "own", statistics.median, 0),
    ]
    lines = [f"| | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    for text, what, pick, digits in rows:
        values = [pick(getattr(figures[name], what)) for name in names]
        cells = [f"{v:.{digits}f} ({v / values[0]:.2f})" for v in values]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return "\n".join(lines)


def run(contenders: Sequence[Contender], plan: Plan) -> dict[str, Figures]:
    """Boot the VMs, and measure all contenders once in each round."""
    figures = {how.name: Figures() for how in contenders}
    module = any(how.bind == "kmod" for how in contenders)
    say = Progress()
    with (
        TemporaryDirectory() as logs,
        pair.booted(Path(logs), say, module=module) as link,
    ):
        for number in range(plan.rounds):
            for how in contenders:
                say(f"round {number + 1} of {plan.rounds}: {how.name}")
                measure(link, how, plan, figures[how.name])
                say(figures[how.name].last())
    return figures


def main() -> int:
    """Measure all contenders and print the results."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bindings")
    add = parser.add_argument
    add("--bind", nargs="+", choices=BINDINGS, default=BINDINGS, metavar="BINDING")
    add("--data-plane", nargs="+", choices=PLANES, default=[RING], metavar="PLANE")
    add("--rounds", type=int, default=3, metavar="N")
    add("--idle", type=float, default=10, metavar="SECONDS", help="in each round")
    add("--pings", type=int, default=60, metavar="N", help="in each round")
    add("--seconds", type=int, default=3, metavar="N", help="of each iperf3")
    args = parser.parse_args()
    logging.basicConfig(format="          %(message)s", level=logging.INFO)
    plan = Plan(args.rounds, args.idle, args.pings, args.seconds)
    contenders = [Contender(*how) for how in product(args.bind, args.data_plane)]
    figures = run(contenders, plan)
    accelerator = "KVM" if qemu.has_kvm() else "TCG"
    print(f"\nQEMU {qemu.version()}, {accelerator}, {plan}\n\n{table(figures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
