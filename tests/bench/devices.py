# SPDX-License-Identifier: Apache-2.0
"""What many devices in one daemon cost: python -m tests.bench.devices [-n 200]

Starts one daemon with so many devices, connects to each a front-end (as a stock QEMU
does it, up to running rings) and an ivshmem client, and prints what there is in the
daemon then.  Needs no root, only descriptors: see `ulimit -Hn`.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.frontend import RingAt
from tests.process.fleet import Fleet
from tests.waiting import PROCESS_TIMEOUT
from vhostpci_shared.limits import raise_descriptor_limit

IDLE = 10.0
KIB = 1024
MODES = {"arena": 'memory = "16M"', "attach": 'mode = "attach"'}


@dataclass(frozen=True, slots=True)
class Sample:
    """The resources of the daemon at one moment."""

    rss: int
    pss: int
    descriptors: int

    @classmethod
    def of(cls, fleet: Fleet) -> "Sample":
        """Read the resources that the daemon uses now."""
        rollup = Path(f"/proc/{fleet.serving}/smaps_rollup").read_text()
        sizes = {
            line.split(":")[0]: int(line.split()[1]) * KIB
            for line in rollup.splitlines()[1:]
        }
        return cls(sizes["Rss"], sizes["Pss"], fleet.descriptors())


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used.

    schedstat counts nanoseconds, /proc/PID/stat hundredths of a second: too coarse for
    a daemon that uses less than one percent.
    """
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


@dataclass(frozen=True, slots=True)
class Result:
    """The results of one run."""

    count: int
    empty: Sample
    waiting: Sample
    connected: Sample
    start: float
    connect: float
    connect_work: float
    """Seconds of processor time in which the daemon has connected all."""
    idle: float
    """Part of one processor, with all connected and nothing to do."""
    stop: float

    def per_device(self, what: str, sample: Sample) -> float:
        """Return what one device adds to the daemon's resources."""
        more = getattr(sample, what) - getattr(self.empty, what)
        return float(more) / self.count


@contextmanager
def a_fleet(names: list[str], options: str) -> Iterator[Fleet]:
    with (
        tempfile.TemporaryDirectory(prefix="vhp-", dir="/dev/shm") as directory,
        Fleet(Path(directory), names, options) as fleet,
    ):
        yield fleet


def measure(
    count: int,
    mode: str,
    pairs: int = 1,
    idle: float = IDLE,
    end_within: float = PROCESS_TIMEOUT,
) -> Result:
    """Start a daemon, connect everything, and look at it.

    Raises:
        AssertionError: it has not ended within `end_within` seconds, without the time
            in which it waited for a processor.
    """
    raise_descriptor_limit()  # we hold the other ends of all that the daemon holds
    options = f"{MODES[mode]}\nqueue-pairs = {pairs}"
    names = [f"d{index}" for index in range(count)]
    with a_fleet([], options) as fleet:
        empty = Sample.of(fleet)
    began = time.monotonic()
    with a_fleet(names, options) as fleet:
        start = time.monotonic() - began
        waiting = Sample.of(fleet)
        before = cpu_seconds(fleet.serving)
        connect = connect_all(fleet, names, pairs)
        work = cpu_seconds(fleet.serving) - before
        connected = Sample.of(fleet)
        used = cpu_seconds(fleet.serving)
        time.sleep(idle)
        used = cpu_seconds(fleet.serving) - used
        began = time.monotonic()
        fleet.end_within(end_within)
        stop = time.monotonic() - began
    idle_part = used / idle
    return Result(
        count, empty, waiting, connected, start, connect, work, idle_part, stop
    )


def connect_all(fleet: Fleet, names: list[str], pairs: int) -> float:
    """Connect a slave and a master to each device; return the seconds it took."""
    began = time.monotonic()
    for name in names:
        fleet.slave(name, pairs)
        fleet.master(name, pairs).driver_ok(
            [RingAt.nth(index) for index in range(2 * pairs)], pairs=pairs
        )
    for name in names:
        fleet.wait_log(f"{name}: started rings")
    return time.monotonic() - began


def table(result: Result) -> str:
    """Return the figures."""
    lines = [f"{'':28}{'no device':>12}{'waiting':>12}{'connected':>12}{'each':>10}"]
    for what, text, unit in (
        ("rss", "resident memory, KiB", KIB),
        ("pss", "proportional memory, KiB", KIB),
        ("descriptors", "descriptors", 1),
    ):
        values = [
            getattr(sample, what) / unit
            for sample in (result.empty, result.waiting, result.connected)
        ]
        each = result.per_device(what, result.connected) / unit
        lines.append(f"{text:28}" + "".join(f"{v:12.0f}" for v in values))
        lines[-1] += f"{each:10.1f}"
    lines += [
        f"{'time to start':28}{result.start:10.2f} s",
        f"{'time to connect all':28}{result.connect:10.2f} s",
        f"{'processor when idle':28}{100 * result.idle:10.2f} %",
        f"{'time to end':28}{result.stop:10.2f} s",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measure the daemon and print the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-n", "--devices", type=int, default=200, metavar="N")
    parser.add_argument("--mode", choices=MODES, default="arena")
    parser.add_argument("--queue-pairs", type=int, default=1, metavar="N")
    args = parser.parse_args()
    print(f"{args.devices} devices, {args.mode} mode, {args.queue_pairs} queue pair(s)")
    print(table(measure(args.devices, args.mode, args.queue_pairs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
