# SPDX-License-Identifier: Apache-2.0
"""A kick that the daemon passes on, beside one that it need not, and beside Python.

    this process ── eventfd ──► relaying process ── eventfd ──► receiving process
                 └───────────── eventfd, directly ────────────►

All ways are open at once, and take turns, some signals each; the relay whose turn it
is not is stopped.  Before each signal all processes go to sleep, as with one request at
a time.
"""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.compiling import HERE
from tests.bench.figures import Figure
from tests.bench.plan import CannotMeasure, Part, Plan

HOPS, QUICK_HOPS = 300, 60
"""Signals in a run, on each way."""
PAUSE = 0.002
"""Seconds between two signals, in which all processes fall asleep."""
TURN = 10
"""Signals on one way until it is the next one's turn."""
MASTERS = 200
"""Relays of the daemon that has a master that signals without end."""
DIRECT, LOOP, THREAD = "direct", "loop", "thread"


@dataclass(slots=True)
class Way:
    """An eventfd to signal, the one that is signalled then, and who relays."""

    source: int
    target: int
    relay: subprocess.Popen[str] | None = None
    took: list[float] = field(default_factory=list)
    """Microseconds of each signal."""
    used: float = 0.0
    """Microseconds of the relay's processor time for all of them."""


def start(stack: ExitStack, *words: object, fds: list[int]) -> subprocess.Popen[str]:
    """Start a process of `signal_hop`, which ends with the stack."""
    process = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.signal_hop", *map(str, words)],
            cwd=HERE.parents[1],
            pass_fds=fds,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    stack.callback(process.kill)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise CannotMeasure("a process did not start")
    return process


def eventfd(stack: ExitStack) -> int:
    """Make an eventfd."""
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    stack.callback(os.close, fd)
    return fd


def processor_us(process: subprocess.Popen[str]) -> float:
    """Return the processor time of all threads of a process so far."""
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e3


class Ways:
    """The ways of a signal, by name, and the process at their end."""

    def __init__(self, stack: ExitStack, *, flood: bool) -> None:
        self._ways = {DIRECT: self._direct(stack)}
        for role in (LOOP, THREAD):
            self._ways[role] = self._relayed(stack, role, flood=flood)
        self._came, theirs = os.pipe()
        targets = [way.target for way in self._ways.values()]
        start(stack, "receive", theirs, *targets, fds=[theirs, *targets])
        os.close(theirs)
        stack.callback(os.close, self._came)

    def _direct(self, stack: ExitStack) -> Way:
        fd = eventfd(stack)
        return Way(fd, fd)

    def _relayed(self, stack: ExitStack, role: str, *, flood: bool) -> Way:
        way = Way(eventfd(stack), eventfd(stack))
        fds = [way.source, way.target]
        if flood:
            # Two relays that signal each other without end, and idle ones.
            one, other = eventfd(stack), eventfd(stack)
            fds += [one, other, other, one]
            for _ in range(MASTERS - 3):
                fds += [eventfd(stack), eventfd(stack)]
            os.eventfd_write(one, 1)
        way.relay = start(stack, role, *fds, fds=list(set(fds)))
        way.relay.send_signal(signal.SIGSTOP)
        return way

    def run(self, hops: int) -> dict[str, Way]:
        """Signal each way in turn, so often; return what that took."""
        for way in self._ways.values():
            way.took.clear()
            way.used = 0.0
        for _ in range(hops // TURN):
            for way in self._ways.values():
                self._turn(way)
        return self._ways

    def _turn(self, way: Way) -> None:
        if way.relay:
            way.relay.send_signal(signal.SIGCONT)
        for _ in range(TURN):
            self._hop(way)
        if way.relay:
            way.relay.send_signal(signal.SIGSTOP)

    def _hop(self, way: Way) -> None:
        time.sleep(PAUSE)
        before = processor_us(way.relay) if way.relay else 0.0
        began = time.monotonic_ns()
        os.eventfd_write(way.source, 1)
        came = int.from_bytes(os.read(self._came, 8), "little")
        way.took.append((came - began) / 1000)
        if way.relay:
            time.sleep(PAUSE)
            way.used += processor_us(way.relay) - before


@contextmanager
def opened(*, flood: bool) -> Iterator[Ways]:
    """Open all ways, and start the processes on them."""
    with ExitStack() as stack:
        yield Ways(stack, flood=flood)


def figures(name: str, runs: list[dict[str, tuple[float, float]]]) -> list[Figure]:
    """Make the figures of one situation from the medians of its runs."""

    def one(what: str, peer: str, peer_name: str, index: int) -> Figure:
        return Figure(
            part="relay",
            name=f"{what}{name}, beside {peer_name}",
            unit="us",
            better="lower",
            peer_name=peer_name,
            ours_runs=tuple(run[THREAD][index] for run in runs),
            peer_runs=tuple(run[peer][index] for run in runs),
        )

    python, direct = "a relay in Python", "no relay"
    found = [one("kick", LOOP, python, 0), one("kick", DIRECT, direct, 0)]
    if not name:
        found.append(one("processor time of a kick", LOOP, python, 1))
    return found


def measure(plan: Plan) -> list[Figure]:
    """Measure an idle daemon, and one with a master that signals without end."""
    hops = QUICK_HOPS if plan.quick else HOPS
    found: list[Figure] = []
    for flood in (False, True):
        runs = []
        with opened(flood=flood) as ways:
            for _ in range(plan.runs):
                ways.run(TURN)  # all pages are there
                runs.append(
                    {
                        key: (statistics.median(way.took), way.used / hops)
                        for key, way in ways.run(hops).items()
                    }
                )
        flooding = f" while one of {MASTERS} masters kicks without end"
        found += figures(flooding if flood else "", runs)
    return found


PART = Part("relay", "what a kick costs that the daemon has to pass on", measure)
