# SPDX-License-Identifier: Apache-2.0
"""iperf3 of all kinds, while daemon and agent are killed, stopped and upgraded.

    python -m tests.soak kills [--minutes 30] [--every 5] [--seed N]

The master is this machine's network stack behind a virtio-net driver in a process, as
in `tests/process`; its front-end connects again as QEMU does.  Each end of a program
must cost no more packets than those of a bounded time, and leave the rings whole.
"""

import argparse
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes.frontend import Socket
from tests.fakes.netns import private_network
from tests.process.lab import Lab
from tests.soak.resources import Resources
from tests.soak.traffic import Probe, Sessions, Traffic
from tests.waiting import is_hung_up, wait_for
from vhostpci_host.errors import HostError

STOPPED = 2.0
"""Seconds for which an agent is stopped."""
BOUNDS = {
    "daemon killed": 3.0,
    "daemon stopped": 7.0,  # its keeper waits for three seconds
    "daemon upgraded": 2.0,
    "daemon ended and started": 6.0,
    "agent killed": 6.0,
    "agent stopped": STOPPED + 4.0,
}
"""The seconds without a packet that each kind of end may cost on a quiet machine."""
MAY_DISCONNECT = "daemon ended and started"
"""The only kind that a front-end may notice."""


@dataclass(slots=True)
class Report:
    """What a run has shown."""

    seconds: float = 0.0
    packets: int = 0
    gaps: dict[str, list[float]] = field(default_factory=dict)
    """The longest time without a packet after each end, by its kind."""
    sessions: Mapping[str, Sessions] = field(default_factory=dict)
    before: Resources | None = None
    after: Resources | None = None
    problems: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """Return the report."""
        count = sum(map(len, self.gaps.values()))
        yield f"{self.seconds:.0f} s, {count} ends, {self.packets} packets"
        for kind, gaps in sorted(self.gaps.items()):
            yield (
                f"{kind:25} {len(gaps):4} times; without a packet: "
                f"median {statistics.median(gaps):.2f} s, longest {max(gaps):.2f} s"
            )
        for name, sessions in self.sessions.items():
            yield f"{name:31} {sessions.done:4} sessions, {sessions.failed} failed"
        yield f"at the start {self.before}"
        yield f"at the end   {self.after}"


class Kills:
    """The ends of a lab's programs.

    Args:
        lab: has a daemon, an agent and a master.
        patience: how many times longer than `BOUNDS` a gap may be.
    """

    def __init__(self, lab: Lab, patience: float) -> None:
        self._lab = lab
        self._patience = patience
        self.report = Report()
        self.traffic = Traffic(lab)
        self.probe = Probe(lab)
        self.kinds: Mapping[str, Callable[[], None]] = {
            "daemon killed": lambda: self._signal_daemon(signal.SIGKILL),
            "daemon stopped": lambda: self._signal_daemon(signal.SIGSTOP),
            "daemon upgraded": lambda: self._lab.daemon.send(signal.SIGUSR2),
            "daemon ended and started": self._start_daemon,
            "agent killed": self._start_agent,
            "agent stopped": self._stop_agent,
        }

    def end(self, kind: str) -> None:
        """End something, and wait until packets cross again."""
        began = time.time()
        self.kinds[kind]()
        bound = BOUNDS[kind] * self._patience
        try:
            wait_for(lambda: self._is_over(began), self._state, 60 + 2 * bound)
        except AssertionError as error:
            self.report.problems.append(f"{kind}: no packet any more: {error}")
            raise
        gap = self.probe.longest_gap(began)
        self.report.gaps.setdefault(kind, []).append(gap)
        if gap > bound:
            self.report.problems.append(f"{kind}: no packet for {gap:.1f} s")
        if kind != MAY_DISCONNECT and self._hung_up():
            self.report.problems.append(f"{kind}: the master was disconnected")
            self._lab.master.come_back()

    def _signal_daemon(self, number: signal.Signals) -> None:
        before = self._pid()
        os.kill(before, number)
        wait_for(lambda: self._pid() not in (0, before), self._state)

    def _pid(self) -> int:
        status = self._status()
        return int(status["daemon"]["pid"]) if status else 0

    def _status(self) -> Any:
        try:
            return self._lab.status()
        except HostError:
            return None  # the daemon that has ended had accepted our connection

    def _start_daemon(self) -> None:
        self._lab.daemon.end()
        self._lab.start_daemon()
        self._lab.master.come_back()

    def _start_agent(self) -> None:
        self._lab.agent.end(signal.SIGKILL)
        self._lab.start_agent()

    def _stop_agent(self) -> None:
        self._lab.agent.send(signal.SIGSTOP)
        self.rest(STOPPED)
        self._lab.agent.send(signal.SIGCONT)

    def _is_over(self, began: float) -> bool:
        self.traffic.step()
        status = self._status()
        runs = status is not None and status["state"] == "running"
        return runs and self.probe.has_replied(max(began, time.time() - 0.5))

    def _state(self) -> str:
        return f"{self._status()}\n{self._lab.daemon.log[-3000:]}"

    def _hung_up(self) -> bool:
        transport = self._lab.master.frontend.transport
        assert isinstance(transport, Socket)
        return is_hung_up(transport.socket.fileno())

    def rest(self, seconds: float) -> None:
        """Let traffic flow for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.traffic.step()
            time.sleep(0.1)

    def resources(self) -> Resources:
        """Return what the lab's programs have now."""
        return Resources.of(
            keeper=self._lab.daemon.process.pid,
            daemon=self._lab.daemon.serving,
            agent=self._lab.agent.process.pid,
        )

    def look_at_rings(self) -> None:
        """Note what is wrong with the rings at the end."""
        for ring in self._lab.status()["rings"]:
            if ring["state"] != "running" or ring["problem"]:
                self.report.problems.append(f"ring {ring['queue']}: {ring}")


def run(
    directory: Path, seconds: float, every: float, *, seed: int, patience: float
) -> Report:
    """Run it in a directory with a short name.

    Args:
        directory: for the lab's files.
        seconds: for which it runs.
        every: seconds from one end to the next, if packets cross by then.
        seed: of the order of the ends.
        patience: see `Kills`.
    """
    with ExitStack() as stack:
        stack.enter_context(private_network())
        lab = stack.enter_context(Lab(directory))
        lab.start_daemon()
        lab.start_agent()
        lab.start_master().load()
        lab.wait_carrier("UP")
        kills = Kills(lab, patience)
        _run(kills, seconds, every, random.Random(seed))
        kills.report.problems += _errors(directory)
    return kills.report


def _run(kills: Kills, seconds: float, every: float, order: random.Random) -> None:
    report = kills.report
    for kind in BOUNDS:
        kills.end(kind)  # each kind once: what this leaves is no leak
    report.gaps.clear()
    report.before = kills.resources()
    began, packets = time.monotonic(), kills.traffic.packets()
    while time.monotonic() - began < seconds:
        due = time.monotonic() + every
        kills.end(order.choice(list(BOUNDS)))
        kills.rest(due - time.monotonic())
    report.seconds = time.monotonic() - began
    report.packets = kills.traffic.packets() - packets
    report.sessions = kills.traffic.sessions
    report.after = kills.resources()
    report.problems += report.before.leaks(report.after)
    kills.look_at_rings()
    kills.probe.close()


def _errors(directory: Path) -> list[str]:
    """Return what the logs say that must not be there."""
    return [
        f"{log.name}: {line}"
        for log in directory.glob("*.log")
        for line in log.read_text(errors="replace").splitlines()
        if "Traceback" in line or "broken ring" in line
    ]


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add this program's arguments."""
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=5.0, metavar="S")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument(
        "--patience",
        type=float,
        default=1.0,
        help="how many times longer a gap may be, on a busy machine",
    )


def main(args: argparse.Namespace) -> list[str]:
    """Run it, print the report; return what is not as it should be."""
    print(f"seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="vhp-", dir="/dev/shm") as name:
        report = run(
            *(Path(name), 60 * args.minutes, args.every),
            seed=args.seed,
            patience=args.patience,
        )
    print("\n".join(report.lines()))
    return report.problems
