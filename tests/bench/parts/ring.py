# SPDX-License-Identifier: Apache-2.0
"""The ring, on the device's side, beside DPDK's vhost library: ../vhost/bench.c.

The paths are those of DPDK's own tests of virtio and vhost: each is another function of
DPDK's driver, and offers its buffers in another way.  Last come two real front-ends:
../front_ends.py.
"""

import os
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.bench import front_ends
from tests.bench.compiling import (
    COMMON,
    HERE,
    OURS,
    compile_object,
    link,
    require,
    ring_sources,
)
from tests.bench.figures import Figure, steady_mean
from tests.bench.plan import CannotMeasure, Part, Plan
from tests.bench.report import PACKET_TIME
from tests.fakes.netns import private_network

VHOST = HERE / "vhost"

BURST = 32
BURSTS = 1000
QUICK_BURSTS = 200
TIMEOUT = 300.0

PATHS = {
    "split inorder mergeable": "packed_vq=0,mrg_rxbuf=1,in_order=1",
    "split inorder non-mergeable": "packed_vq=0,mrg_rxbuf=0,in_order=1",
    "split mergeable": "packed_vq=0,mrg_rxbuf=1,in_order=0",
    "split non-mergeable": "packed_vq=0,mrg_rxbuf=0,in_order=0",
    "split vectorized": "packed_vq=0,mrg_rxbuf=0,in_order=0,vectorized=1",
    "packed inorder mergeable": "packed_vq=1,mrg_rxbuf=1,in_order=1",
    "packed inorder non-mergeable": "packed_vq=1,mrg_rxbuf=0,in_order=1",
    "packed mergeable": "packed_vq=1,mrg_rxbuf=1,in_order=0",
    "packed non-mergeable": "packed_vq=1,mrg_rxbuf=0,in_order=0",
    "packed vectorized": "packed_vq=1,mrg_rxbuf=0,in_order=1,vectorized=1",
}
"""By name: the driver's settings."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of packet on one path."""

    direction: str
    size: int
    side: str


@dataclass(frozen=True, slots=True)
class Output:
    """What the program has printed."""

    version: str
    line: float
    """ns that a cache line takes from one processor to the other and back."""
    runs: dict[Case, list[float]]
    """ns a packet, for each run."""


def build(directory: Path) -> Path:
    """Compile the program; return its path.

    Raises:
        CannotMeasure: there is no compiler, or there are no headers of DPDK.
    """
    require("gcc", "pkg-config")
    # sink.c stands for tap.c.
    ours = [*ring_sources(without=["tap.c"]), VHOST / "ours.c"]
    objects = [compile_object(path, [*OURS, f"-I{VHOST}"], directory) for path in ours]
    flags = [*COMMON, *_flags("--cflags")]
    objects += [
        compile_object(VHOST / name, flags, directory)
        for name in ("sink.c", "dpdk.c", "bench.c")
    ]
    libraries = ["eal", "ethdev", "mbuf", "mempool", "vhost", "bus_vdev"]
    return link(objects, directory / "bench", *(f"rte_{name}" for name in libraries))


def _flags(kind: str) -> list[str]:
    done = subprocess.run(
        ["pkg-config", kind, "libdpdk"], capture_output=True, text=True
    )
    if done.returncode:
        raise CannotMeasure("libdpdk-dev is not installed; tools/setup bench does it")
    return done.stdout.split()


def command(program: Path, settings: str, runs: int, bursts: int) -> list[str]:
    """Return the command line; device and driver have a processor each."""
    cores = sorted(os.sched_getaffinity(0))
    directory = program.parent
    return [
        *(str(program), "--lcores", f"0@{cores[0]},1@{cores[-1]}"),
        *("--no-pci", "--no-telemetry", "--no-huge", "-m", "64"),
        *("--log-level", "pmd.net.virtio.*:info"),
        # Its vectorized driver of packed rings uses AVX-512 where there is one.
        *("--force-max-simd-bitwidth=512", "--"),
        *(str(directory / "socket"), settings, str(runs), str(bursts)),
    ]


def parse(text: str) -> Output:
    """Understand what the program printed."""
    version, hertz, line = "", 0.0, 0.0
    runs: dict[Case, list[float]] = defaultdict(list)
    for row in text.splitlines():
        first, *words = row.split()
        if first == "version":
            version = " ".join(words)
        elif first == "hz":
            hertz = float(words[0])
        elif first == "line":
            line = float(np.median(np.array(words, dtype=np.float64))) / hertz * 1e9
        elif first in ("tx", "rx"):
            ticks = steady_mean(np.array(words[2:], dtype=np.float64))
            case = Case(first, int(words[0]), words[1])
            runs[case].append(ticks / hertz * 1e9 / BURST)
    return Output(version, line, dict(runs))


def figures(path: str, output: Output) -> Iterator[Figure]:
    """Return a figure for each direction and size: time, which says packets too."""
    for case, ours in output.runs.items():
        if case.side != "ours":
            continue
        peer = output.runs[Case(case.direction, case.size, "DPDK")]
        yield Figure(
            part="ring",
            name=f"{path}, {case.direction} {case.size}",
            unit=PACKET_TIME,
            better="lower",
            peer_name=output.version,
            ours_runs=tuple(ours),
            peer_runs=tuple(peer),
        )


def run(program: Path, settings: str, plan: Plan) -> Output:
    """Measure one path."""
    (program.parent / "socket").unlink(missing_ok=True)
    done = subprocess.run(
        command(program, settings, plan.runs, QUICK_BURSTS if plan.quick else BURSTS),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        # DPDK keeps its files there.
        env={**os.environ, "RUNTIME_DIRECTORY": str(program.parent)},
    )
    if done.returncode:
        raise CannotMeasure(f"{settings}: {done.stderr.splitlines()[-1:]}")
    if "vectorized=1" in settings and "vectorized Rx path" not in done.stderr:
        raise CannotMeasure("DPDK's driver has no vectorized path on this processor")
    return parse(done.stdout)


def with_front_ends(plan: Plan, directory: Path) -> list[Figure]:
    """Measure behind real front-ends, where that can be done."""
    try:
        if os.geteuid():
            raise CannotMeasure("it makes network namespaces and TAPs: root only")
        require("dpdk-testpmd", "ip")
        with private_network():
            return list(front_ends.figures(plan, directory))
    except CannotMeasure as error:
        print(f"real front-ends: left out: {error}", flush=True)
        return []


def measure(plan: Plan) -> list[Figure]:
    """Measure all paths."""
    found: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="vhp-bench-") as directory:
        program = build(Path(directory))
        for path, settings in PATHS.items():
            try:
                output = run(program, settings, plan)
            except CannotMeasure as error:
                print(f"{path}: left out: {error}", flush=True)
                continue
            print(f"{path}: a cache line takes {output.line:.0f} ns there and back")
            found += figures(path, output)
        found += with_front_ends(plan, Path(directory))
    if not found:
        raise CannotMeasure("no path works here")
    return found


PART = Part(
    "ring",
    "processor time of a packet on the device's side of a ring, beside DPDK's library",
    measure,
)
