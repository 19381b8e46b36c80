# SPDX-License-Identifier: Apache-2.0
"""How long one direction of a queue pair waits for the other, in processor time.

    python -m tests.bench.passes        # as root

The ring driver, without its thread, sends from a full ring into a TAP, pass by pass.
What is timed is its processor time, which holds on a busy machine.  To see what another
limit of a pass brings, change NET_BATCH or NET_BATCH_BYTES of guest/ring/net.h, and
compile.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.fakes.driver import Desc
from tests.fakes.netns import private_network
from tests.fakes.pair import RX, TX, Pair
from tests.fakes.tap import HEADER, TUN_F_CSUM, TUN_F_TSO4, open_tap

CHAINS = 64
ROUNDS, FIRST_ROUNDS = 60, 5
QUARTER = 25
"""What is not disturbed: the percentile of the rounds that is taken."""
LENGTHS = (64, 1500, 65_000)
FRAME = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5"
"""A broadcast of an unknown protocol: the kernel drops it."""


@dataclass(frozen=True, slots=True)
class Passes:
    """What sending a full ring took."""

    count: int
    longest: float
    """Microseconds of the longest pass."""
    packet: float
    """Nanoseconds for one packet, of all passes together."""


def step(pair: Pair) -> tuple[int, int]:
    """Let the worker make a pass; return its chains, and its nanoseconds."""
    start = time.thread_time_ns()
    done = pair.worker.step()
    return done, time.thread_time_ns() - start


def send(pair: Pair, buffers: list[Desc]) -> list[int]:
    """Send all buffers; return the nanoseconds of each pass."""
    for buffer in buffers:
        pair.tx.offer(buffer)
    passes = []
    while (found := step(pair))[0]:
        passes.append(found[1])
    pair.tx.collect()
    return passes


def nothing(pair: Pair) -> float:
    """Stop the rings; return the nanoseconds of a step with nothing to do."""
    for index in (RX, TX):
        pair.worker.stop(index)
    return float(np.percentile([step(pair)[1] for _ in range(300)], QUARTER))


def measure(tap: int, length: int) -> Passes:
    """Send packets of that length into a TAP."""
    with Pair((0, 64 << 20), num=256, event_idx=True, tap_fd=tap) as pair:
        data = (HEADER.pack(*[0] * 7) + FRAME).ljust(HEADER.size + length, b"\0")
        buffers = []
        for _ in range(CHAINS):
            address = pair.memory.allocate(len(data), 1)
            pair.memory.write(address, data)
            buffers.append(Desc(address, len(data)))
        rounds = [send(pair, buffers) for _ in range(ROUNDS)][FIRST_ROUNDS:]
        apart = nothing(pair)
    longest = float(np.percentile([max(passes) for passes in rounds], QUARTER))
    whole = float(np.percentile([sum(passes) for passes in rounds], QUARTER))
    count = len(rounds[-1])
    return Passes(count, (longest - apart) / 1000, (whole - count * apart) / CHAINS)


@contextmanager
def quiet_tap() -> Iterator[int]:
    """A TAP in a network of its own, into which the kernel sends nothing."""
    with private_network():
        tap = open_tap("tap0", TUN_F_CSUM | TUN_F_TSO4)
        try:
            Path("/proc/sys/net/ipv6/conf/tap0/disable_ipv6").write_text("1")
            subprocess.run(["ip", "link", "set", "tap0", "up"], check=True)
            yield tap
        finally:
            os.close(tap)


def main() -> int:
    """Print what passes take."""
    if os.geteuid():
        print("passes: it makes a TAP, which needs root", file=sys.stderr)
        return 1
    print(f"{CHAINS} packets of  passes  the longest  a packet")
    with quiet_tap() as tap:
        for length in LENGTHS:
            found = measure(tap, length)
            print(
                f"{length:10} bytes{found.count:8}{found.longest:10.1f} us"
                f"{found.packet:7.0f} ns"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
