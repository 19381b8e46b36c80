# SPDX-License-Identifier: Apache-2.0
"""A daemon with many devices is upgraded again and again while packets flow.

    python -m tests.soak upgrades [--devices 200] [--upgrades 100]

Each device has a front-end and a slave that are fake, some of them with kicks and calls
that cross the daemon all the time.  One more device has a master with a driver and an
agent with a TAP, between which pings go on.
"""

import argparse
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.netns import private_network
from tests.pings import unbroken, wait_late_replies
from tests.process.lab import SLAVE_ADDRESS, Lab
from tests.process.program import Program
from tests.soak.flows import Flows, Pair
from tests.soak.resources import Resources
from tests.waiting import wait_for
from vhostpci_shared.limits import raise_descriptor_limit

FLOWING = 8
"""Devices whose kicks and calls go on all the time."""
SERVING = " I serving "
"""What the log says when a daemon is ready."""
EACH = 0.01
"""Seconds between two pings."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run has shown."""

    devices: int
    upgrades: int
    seconds: tuple[float, ...]
    """Of each upgrade, until the next daemon serves all devices."""
    gaps: tuple[float, ...]
    """Of each upgrade: the longest trip of a kick and its call."""
    trips: int
    hangups: int
    pings: int
    """How many came back; none that was sent before one of them was lost."""
    before: Resources
    after: Resources

    def problems(self, longest_gap: float) -> list[str]:
        """Return what is not as it should be."""
        found = []
        if self.hangups:
            found.append(f"{self.hangups} connections were ended")
        if max(self.gaps) > longest_gap:
            found.append(f"a gap of {max(self.gaps):.2f} s")
        return found + self.before.leaks(self.after)

    def lines(self) -> Iterator[str]:
        """Return the report."""
        yield f"{self.devices} devices, {self.upgrades} upgrades"
        for name, values in (("upgrade", self.seconds), ("gap", self.gaps)):
            yield (
                f"{name:12} median {statistics.median(values):.3f} s, "
                f"longest {max(values):.3f} s"
            )
        yield f"signals      {self.trips} there and back, {self.hangups} disconnects"
        yield f"pings        {self.pings}, none lost"
        yield f"at the start {self.before}"
        yield f"at the end   {self.after}"


class Upgrades(Lab):
    """A lab with one daemon, many fake devices, and one whose packets are real."""

    def start(self, devices: int) -> list[Pair]:
        """Start all, and return the fake ones."""
        names = [f"d{number}" for number in range(devices)]
        self.keeper = self.start_fleet("net0", *names)
        self.start_agent()
        self.start_master().load()
        pairs = []
        for name in names:
            pair = Pair(self.run_dir, self.memory_dir / name, name)
            self._stack.callback(pair.close)
            pairs.append(pair)
        self.wait_carrier("UP")
        wait_for(lambda: self.ping_from_master(1) == 1, "a first ping comes back")
        return pairs

    def resources(self) -> Resources:
        """Return what keeper, daemon and agent have now."""
        return Resources.of(
            keeper=self.keeper.process.pid,
            daemon=self.keeper.serving,
            agent=self.agent.process.pid,
        )


def upgrade(lab: Upgrades) -> float:
    """Have a successor started; return the seconds until it serves all devices."""
    count, began = lab.keeper.log.count(SERVING), time.monotonic()
    lab.keeper.send(signal.SIGUSR2)
    lab.keeper.wait_log(SERVING, count + 1)
    return time.monotonic() - began


@contextmanager
def pinging(lab: Lab) -> Iterator[Program]:
    """Ping the slave without an end; the block's end ends it."""
    pings = lab.start_server(["ping", "-n", "-i", str(EACH), SLAVE_ADDRESS])
    yield pings
    wait_late_replies(pings)
    pings.end(signal.SIGINT)


def run(directory: Path, devices: int, upgrades: int) -> Result:
    """Run it in a directory with a short name."""
    raise_descriptor_limit()
    seconds, gaps = [], []
    with ExitStack() as stack:
        stack.enter_context(private_network())
        lab = stack.enter_context(Upgrades(directory))
        flows = Flows(lab.start(devices), FLOWING)
        stack.enter_context(flows)
        with pinging(lab) as pings:
            flows.wait_trips(10)
            upgrade(lab)  # the first one is another process than those that follow
            flows.wait_trips(3)
            before = lab.resources()
            for _ in range(upgrades):
                flows.take_longest()
                seconds.append(upgrade(lab))
                flows.wait_trips(3)
                gaps.append(flows.take_longest())
            after = lab.resources()
        assert "Traceback" not in lab.keeper.log, lab.keeper.log
        return Result(
            *(devices, upgrades, tuple(seconds), tuple(gaps)),
            *(flows.trips, flows.hangups, unbroken(pings.log)),
            *(before, after),
        )


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add this program's arguments."""
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--upgrades", type=int, default=100)
    parser.add_argument(
        "--longest-gap", type=float, default=10.0, metavar="S", help="fail above it"
    )


def main(args: argparse.Namespace) -> list[str]:
    """Run it, print the report; return what is not as it should be."""
    with tempfile.TemporaryDirectory(prefix="vhp-", dir="/dev/shm") as name:
        result = run(Path(name), args.devices, args.upgrades)
    print("\n".join(result.lines()))
    return result.problems(args.longest_gap)
