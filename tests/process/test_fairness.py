# SPDX-License-Identifier: Apache-2.0
"""A device's peers flood the daemon, and another device hardly notices it.

 good front-end, slave ──► good ┐
                                ├ vhostpci-host
      flood (a process) ──► bad ┘

What an answer costs is counted in the daemon's time on a processor, from the question
to the answer: on a loaded machine all of it takes longer, and costs the same.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.fakes.frontend import FrontEnd
from tests.fakes.slave_client import SlaveClient
from tests.process.fleet import Fleet, kicks_arrive
from tests.process.flood import FLOODS
from tests.waiting import wait_for
from vhostpci_shared.vhost_user import Request

pytestmark = pytest.mark.process

ASKED = 200
BOUND = 20.0
"""Milliseconds of one processor until the 99th of 100 answers, or kicks.

Twice what was seen, so that a slower processor holds it too.
"""
ATTACHED = "tables"
"""Needs a device whose master brings its memory."""


@dataclass(frozen=True, slots=True)
class Good:
    """The daemon, and a front-end and a slave that behave."""

    fleet: Fleet
    front_end: FrontEnd
    slave: SlaveClient
    descriptors: int
    """How many the daemon has while nothing floods it."""


@pytest.fixture(scope="module")
def good() -> Iterator[Good]:
    directory = TemporaryDirectory(prefix="vhostpci-test-", dir="/dev/shm")
    with directory as name, Fleet(Path(name), ["good", "bad"]) as fleet:
        added = fleet.command("add", "attached", "--mode", "attach")
        assert added.returncode == 0, added.stderr
        pair = fleet.pair("good")
        yield Good(fleet, *pair, fleet.descriptors())


@contextmanager
def flooded(fleet: Fleet, kind: str) -> Iterator[None]:
    """Flood a device of the daemon's."""
    name = "attached" if kind == ATTACHED else "bad"
    directories = str(fleet.run_dir), str(fleet.memory_dir)
    with subprocess.Popen(
        [sys.executable, "-m", "tests.process.flood", kind, *directories, name],
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"flooding\n"
            yield
            assert process.poll() is None, "the flood has ended"
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class Spent:
    """Milliseconds on a processor, of the daemon's loop and of its other threads."""

    loop: float
    others: float

    @classmethod
    def by(cls, pid: int) -> "Spent":
        """Return what a process has spent until now."""
        spent: dict[int, float] = {}
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                text = (task / "schedstat").read_text()
                spent[int(task.name)] = int(text.split()[0]) / 1e6
        return cls(spent.pop(pid), sum(spent.values()))


@contextmanager
def first_in_line() -> Iterator[None]:
    """Let this process run as soon as it can, and not when others have had their turn.

    Else the daemon works for the flood while an answer waits to be noticed.
    """
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def measure(good: Good) -> tuple[float, float]:
    """Return what the 99th of 100 answers, and of 100 kicks, has cost."""
    pid = good.fleet.serving
    answers, kicks = [], []
    for _ in range(ASKED):
        before = Spent.by(pid)
        good.front_end.ask(Request.GET_FEATURES)
        answers.append(Spent.by(pid).loop - before.loop)
        before = Spent.by(pid)
        assert kicks_arrive(good.front_end, good.slave)
        kicks.append(Spent.by(pid).others - before.others)
    at = ASKED * 99 // 100
    return sorted(answers)[at], sorted(kicks)[at]


@pytest.mark.parametrize("kind", FLOODS)
def test_flood_of_one_device_costs_another_one_little(good: Good, kind: str) -> None:
    fleet = good.fleet
    fleet.start_log_here()
    with flooded(fleet, kind), first_in_line():
        answers, kicks = measure(good)
    print(f"{kind}: answer {answers:.1f} ms, kick {kicks:.1f} ms")
    assert max(answers, kicks) < BOUND
    # A few lines for each kind of event, and not one for each message.
    assert len(fleet.log.splitlines()) < 200
    wait_for(lambda: fleet.descriptors() <= good.descriptors, fleet.open_files)
