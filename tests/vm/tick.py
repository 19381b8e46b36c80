# SPDX-License-Identifier: Apache-2.0
"""How long a guest stands still: the longest gap between two ticks of 10 ms.

A guest's clock goes on while QEMU's big lock is held for a request to a back-end, so a
program in the guest sees that time as a gap.  It does not go on while the monitor has
stopped the VM.
"""

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.vm.harness import Job, Vm

PROGRAM = """
import signal, time
asked = said = 0
def ask(number, frame):
    global asked
    asked += 1
signal.signal(signal.SIGUSR1, ask)
last = time.monotonic()
print("ticks", flush=True)
while True:
    before = asked
    time.sleep(0.01)
    now = time.monotonic()
    if now - last > 0.05:
        print(f"gap {now - last:.2f}", flush=True)
    last = now
    if said != before:  # not `asked`, which may have come after `now`
        said = before
        print("looked", flush=True)
"""


@dataclass(frozen=True, slots=True)
class Gap:
    """How long a guest stood still at the longest."""

    seen: float
    """Seconds between two ticks, by the guest's clock."""
    starved: float
    """Seconds of the measurement in which QEMU waited for a processor."""

    @property
    def seconds(self) -> float:
        """Seconds that the machine's load does not explain."""
        return max(0.0, self.seen - self.starved)


class Tick:
    """The program that runs in a guest."""

    def __init__(self, vm: Vm, job: Job) -> None:
        self._vm = vm
        self._job = job

    def longest_gap(self, action: Callable[[], object]) -> Gap:
        """Return how long the guest stands still while `action` runs."""
        before, clock = len(self._job.output()), self._vm.patience(0)
        action()
        # A gap is reported when it is over, and by a starved guest long after that.
        self._job.send(signal.SIGUSR1)
        said = self._vm.wait_until(
            lambda: self._said_all(before), lambda: self._job.output()[before:]
        )
        gaps = re.findall(r"gap ([\d.]+)", said)
        return Gap(max(map(float, gaps), default=0.0), clock.starved())

    def _said_all(self, before: int) -> str:
        """Return what it has said since, once it has looked; else an empty text."""
        said = self._job.output()[before:]
        return said if "looked" in said else ""


@contextmanager
def ticking(vm: Vm) -> Iterator[Tick]:
    """Have the guest tick while the block runs."""
    job = vm.spawn(["python3", "-S", "-E", "-c", PROGRAM])
    job.wait_said("ticks")
    try:
        yield Tick(vm, job)
    finally:
        job.stop()
