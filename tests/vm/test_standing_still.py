# SPDX-License-Identifier: Apache-2.0
"""How long a master VM stands still while its QEMU waits for an answer of the daemon.

  master            vhostpci-host            namespace
virtio-net ------ vhost-user, windows ------ vhostpci-guest --socket -- TAP
a tick of 10 ms    killed, stopped            stopped

docs/restarts.md has the times, also those without a keeper.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.vm import image, memory, process, tick
from tests.vm.daemon import Daemon
from tests.vm.pair import SLAVE_ADDRESS, Master
from tests.vm.process import Process
from tests.vm.tick import Gap, Tick

pytestmark = pytest.mark.vm

AGENT = 1.0
"""Seconds that the daemon waits for an agent to stop its rings."""
HUNG = 3.5
"""Seconds until the keeper takes a daemon for hung, at most."""
START = 0.3
"""Seconds that a successor takes to start."""
TRIES = 3
"""Kills of the daemon, of which the tick must see one."""
SLACK = 5.0
"""Seconds for a machine without free processors; a wait without a bound is longer."""
SLOW_START = 15.0
"""Seconds that a successor may take to start on such a machine."""


@dataclass(frozen=True, slots=True)
class Link:
    """A master with a tick, and an agent that serves it."""

    daemon: Daemon
    master: Master
    slave: Process
    ticks: Tick

    def gap(self, action: Callable[[], object] | None = None) -> Gap:
        """Return how long the master stands still for this, or when its link goes."""
        return self.ticks.longest_gap(action or self.cable)

    def cable(self) -> None:
        """Take the master's link away, and give it back: QEMU asks for all rings."""
        for up in (False, True):
            self.master.qmp("set_link", name=f"vhostpci-{self.daemon.name}-net", up=up)

    def wait_packets(self) -> None:
        """Wait until packets cross."""
        self.daemon.wait_state("running")
        self.master.wait_for(f"ping -n -q -c 1 -W 1 {SLAVE_ADDRESS}")


@pytest.fixture(scope="module")
def booted(logs: Path) -> Iterator[Link]:
    """The master for all tests."""
    here = logs / "standing-still"
    with Daemon("still", logs=here) as daemon:
        args = [*daemon.card(), *memory.memfd("256M")]
        master = Master("master", image.build(), logs=here, args=args)
        with master, process.serving(daemon, here / "agent.log") as slave:
            master.wait_ready()
            master.configure()
            slave.wait_tap()
            with tick.ticking(master) as ticks:
                yield Link(daemon, master, slave, ticks)


@pytest.fixture
def link(booted: Link) -> Iterator[Link]:
    """The same, with packets that cross before and after a test."""
    booted.wait_packets()
    yield booted
    booted.wait_packets()


def test_not_when_all_is_well(link: Link) -> None:
    assert link.gap().seconds < SLACK


def test_a_second_when_the_agent_hangs(link: Link) -> None:
    os.kill(link.slave.pid, signal.SIGSTOP)
    try:
        still = link.gap()
    finally:
        os.kill(link.slave.pid, signal.SIGCONT)
    # The daemon waits once for all rings.
    assert still.seen > AGENT / 2, "the tick has not seen the wait"
    assert still.seconds < AGENT + SLACK


def test_some_seconds_when_the_daemon_hangs(link: Link) -> None:
    os.kill(link.daemon.serving, signal.SIGSTOP)
    still = link.gap()
    assert still.seen > HUNG / 2, "the tick has not seen the wait"
    assert still.seconds < HUNG + SLOW_START


def test_not_a_second_when_the_daemon_is_killed(link: Link) -> None:
    for _ in range(TRIES):
        os.kill(link.daemon.serving, signal.SIGKILL)
        still = link.gap()
        assert still.seconds < SLOW_START
        if still.seen > START / 2:
            return
    pytest.fail("the tick has not seen the wait")  # the successor was quicker


def test_hardly_when_the_daemon_is_upgraded(link: Link) -> None:
    """However long the next daemon takes to start."""

    def restart() -> None:
        words = ("restart", link.daemon.name)
        job = threading.Thread(target=link.daemon.command, args=words)
        job.start()
        while job.is_alive():
            link.cable()
        job.join()

    assert link.gap(restart).seconds < SLACK
