# SPDX-License-Identifier: Apache-2.0
"""The ring with a TAP behind it, beside plain write() and read(): ../tap_bench.c.

The same packets, in the same memory, into and out of the same TAP.  What the ring adds
is the difference; the TAP is the ceiling.
"""

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.bench.compiling import (
    COMMON,
    HERE,
    OURS,
    compile_object,
    link,
    require,
    ring_sources,
)
from tests.bench.figures import Better, Figure, Floats, steady_mean
from tests.bench.plan import CannotMeasure, Part, Plan
from tests.bench.report import PACKET_TIME

TAP = "tap0"
ROUNDS = 101
QUICK_ROUNDS = 21
BULK = 60_000
"""Bytes of a packet from which on we count bits, and not packets."""


@dataclass(frozen=True, slots=True)
class Case:
    """Packets of one size, in one direction."""

    direction: str
    size: int
    buffer: int
    """Of each of the driver's."""

    @property
    def name(self) -> str:
        """Say it as a person does."""
        where = "into the TAP" if self.direction == "tx" else "out of the TAP"
        return f"{where}, {self.size:,} bytes in buffers of {self.buffer:,}"

    def figure(self, ours: list[float], peer: list[float]) -> Figure:
        """Make the figure of the ns that a packet takes, in each run."""
        unit = PACKET_TIME
        better: Better = "lower"
        if self.size >= BULK:
            unit, better = "Gbit/s", "higher"
            ours = [8 * self.size / time for time in ours]
            peer = [8 * self.size / time for time in peer]
        return Figure(
            part="bulk",
            name=self.name,
            unit=unit,
            better=better,
            peer_name="plain writev() and readv()",
            ours_runs=tuple(ours),
            peer_runs=tuple(peer),
        )


CASES = [
    Case("tx", 65_000, 65_536),
    Case("rx", 65_000, 65_636),
    Case("rx", 65_000, 1_536),
    Case("tx", 1_500, 2_048),
    Case("rx", 1_500, 1_536),
    Case("tx", 60, 2_048),
    Case("rx", 60, 1_536),
]


def build(directory: Path) -> Path:
    """Compile the program; return its path."""
    require("gcc", "unshare")
    objects = [compile_object(path, OURS, directory) for path in ring_sources()]
    objects.append(compile_object(HERE / "tap_bench.c", COMMON, directory))
    return link(objects, directory / "tap_bench")


def rounds(program: Path, case: Case, count: int) -> Floats:
    """Return the ns of a packet, a row for each round: through the ring, and without.

    Raises:
        CannotMeasure: there is no TAP.
    """
    words = (case.direction, TAP, case.size, case.buffer, count)
    done = subprocess.run(
        ["unshare", "-n", program, *map(str, words)], capture_output=True, text=True
    )
    if done.returncode:
        raise CannotMeasure(done.stderr.strip() or f"exit status {done.returncode}")
    lines = done.stdout.splitlines()
    return np.array([line.split() for line in lines], dtype=np.float64)


def measure(plan: Plan) -> list[Figure]:
    """Measure all cases; both sides take turns within the program."""
    if os.geteuid():
        raise CannotMeasure("it makes a TAP in a network namespace, which needs root")
    count = QUICK_ROUNDS if plan.quick else ROUNDS
    found: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="vhp-bench-") as directory:
        program = build(Path(directory))
        for case in CASES:
            runs = [rounds(program, case, count).T for _ in range(plan.runs)]
            means = [[steady_mean(side) for side in run] for run in runs]
            found.append(case.figure([m[0] for m in means], [m[1] for m in means]))
    return found


PART = Part(
    "bulk",
    "what the ring driver leaves of a TAP: segments of 64 KiB, and small packets",
    measure,
)
