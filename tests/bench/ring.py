# SPDX-License-Identifier: Apache-2.0
"""What the ring costs on top of its system calls: python tests/bench/ring.py

It needs root, to make a TAP in a new network namespace, and a quiet machine.
Compare the ratio: the median time through the ring to that of the bare system calls.
"""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RING = HERE.parents[1] / "guest" / "ring"
ROUNDS = 201

CASES = [
    ("tx", "null", 1500, 2048),
    ("tx", "tap0", 60, 2048),
    ("tx", "tap0", 1500, 2048),
    ("tx", "tap0", 60000, 65536),
    ("rx", "tap0", 60, 1536),
    ("rx", "tap0", 1500, 1536),
    ("rx", "tap0", 60000, 65636),
]


def build(program: Path) -> None:
    names = ["mem", "vq", "split", "net", "rx", "tx", "tap", "loop", "worker"]
    subprocess.run(
        [
            *("cc", "-std=gnu11", "-O2", "-pthread", "-D_GNU_SOURCE", f"-I{RING}"),
            str(HERE / "ring_bench.c"),
            *(str(RING / f"{name}.c") for name in names),
            *("-o", str(program)),
        ],
        check=True,
    )


def measure(program: Path, *case: str | int) -> tuple[float, float]:
    """Return the median ns per packet, through the ring and without it."""
    out = subprocess.run(
        ["unshare", "-n", program, *map(str, case), str(ROUNDS)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    rounds = [line.split() for line in out.splitlines()]
    return (
        statistics.median(float(ring) for ring, _ in rounds),
        statistics.median(float(bare) for _, bare in rounds),
    )


def main() -> int:
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "ring_bench"
        build(program)
        print("direction  device  packet  buffer   ring ns   bare ns  ratio")
        for case in CASES:
            ring, bare = measure(program, *case)
            print(
                "{:9}  {:6}  {:6}  {:6}".format(*case),
                f"{ring:9.0f} {bare:9.0f} {ring / bare:6.2f}",
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
