# SPDX-License-Identifier: Apache-2.0
"""Attach mode: a master that brings its memory, and an agent that is a process."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import cycle
from pathlib import Path

import pytest

from tests.fakes.netns import private_network
from tests.pings import ping, unbroken
from tests.process.attach import AttachLab
from tests.process.lab import ATTACH, MASTER_ADDRESS, Lab
from tests.process.master import Master, Ram
from tests.process.program import Program
from tests.process.test_packets import iperf
from tests.waiting import wait_for
from vhostpci_shared.vhost_user import MemRegion

pytestmark = pytest.mark.process

MIB = 1 << 20
TICKS = 5
"""At most so many times a second an idle daemon wakes: four ticks, and a status."""
TWO_NODES = (7 * MIB, 25 * MIB)
"""Sizes of two files: rings and some buffers in the first, buffers in the second."""


def two_nodes() -> Ram:
    return Ram.of_nodes(*TWO_NODES)


@contextmanager
def start_shared(directory: Path) -> Iterator[AttachLab]:
    """A daemon and an agent, to which each test connects another master."""
    with private_network(), AttachLab(directory) as lab:
        lab.start()
        yield lab


def test_packets_of_a_master_with_two_nodes(shared: AttachLab) -> None:
    with shared.attached(*TWO_NODES):
        assert shared.ping_from_master(10, "-s", "60000") == 10
        assert shared.ping_from_slave(10, "-s", "60000") == 10
        assert iperf(shared, from_master=True) > 1.0
        windows = shared.status()["windows"]
        assert [window["size"] for window in windows] == [*TWO_NODES]
        assert all(window["connected"] for window in windows)


def test_windows_come_and_go_with_the_master(shared: AttachLab) -> None:
    for _ in range(3):
        with shared.attached(*TWO_NODES):
            assert shared.ping_from_master() == 5
        shared.wait_carrier("NO-CARRIER")
        wait_for(lambda: not shared.status()["windows"], "the windows are gone")


@pytest.mark.parametrize("first", ["agent", "master"])
def test_kicks_need_no_daemon_in_either_start_order(lab: Lab, first: str) -> None:
    """The daemon relays no kick and no interrupt, and sleeps."""
    daemon = lab.start_daemon(*ATTACH)
    if first == "agent":
        lab.start_agent()
    lab.start_master(two_nodes()).load()
    if first == "master":
        wait_for(
            lambda: all(ring["state"] == "running" for ring in lab.status()["rings"]),
            "the rings run",
        )
        lab.start_agent()
    lab.wait_carrier("UP")
    wakes, began = sleeps(daemon.serving), time.monotonic()
    assert lab.ping_from_slave(30, "-i", "0.05") == 30
    woken = sleeps(daemon.serving) - wakes
    # Its ticks, four a second, go on however long the machine needs for the pings.
    ticks = TICKS * (time.monotonic() - began)
    # The agent publishes its counts from time to time.
    wait_for(
        lambda: lab.status()["rings"][1]["agent"]["kicks"] > 20,
        "the kicks of what the master sends",
    )
    rings = lab.status()["rings"]
    assert all(ring["kick_direct"] for ring in rings)
    assert [ring["kicks_relayed"] for ring in rings] == [0] * len(rings)
    assert woken < ticks + 30, "less than once for each ping, besides its ticks"


def sleeps(pid: int) -> int:
    """How often a process has gone to sleep."""
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        fields = dict(line.split(":", 1) for line in lines)
    return int(fields["voluntary_ctxt_switches"])


def test_no_packet_is_lost_when_memory_is_added_and_removed(shared: AttachLab) -> None:
    with shared.attached(*TWO_NODES) as master, closing(Ram.of_nodes(MIB)) as extra:
        table = master.frontend.regions
        (one, fd), high = extra.memory_table()[0], 1 << 32
        longer = [*table, (MemRegion(high, one.size, one.user_addr + high, 0), fd)]
        command = [*shared.slave.prefix, *ping(40, "-i", "0.1"), MASTER_ADDRESS]
        pings = shared.start_server(command)
        for regions in cycle((longer, table)):
            if pings.process.poll() is not None:
                break
            master.frontend.regions = regions
            master.frontend.set_memory()
            time.sleep(0.2)
        assert unbroken(pings.log) == 40


# What follows has a lab for each test: an agent, a daemon or memory is lost in it.


def start(lab: Lab) -> tuple[Program, Program, Master]:
    daemon = lab.start_daemon(*ATTACH)
    agent = lab.start_agent()
    master = lab.start_master(two_nodes())
    master.load()
    lab.wait_carrier("UP")
    return daemon, agent, master


def test_agent_that_is_killed_can_be_replaced(lab: Lab) -> None:
    _, agent, _ = start(lab)
    assert lab.ping_from_master() == 5
    agent.end(signal.SIGKILL)
    lab.start_agent()
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_master(1) == 1, "a first ping comes back")
    assert lab.ping_from_master() == 5


def test_daemon_that_is_killed_can_be_replaced_and_numbers_other_windows(
    lab: Lab,
) -> None:
    daemon, agent, master = start(lab)
    before = {window["window"] for window in lab.status()["windows"]}
    daemon.end(signal.SIGKILL)
    lab.wait_carrier("NO-CARRIER")
    lab.start_daemon(*ATTACH)
    master.reconnect()
    master.load()
    lab.wait_carrier("UP")
    assert lab.ping_from_master() == 5
    after = {window["window"] for window in lab.status()["windows"]}
    assert not before & after
    assert agent.process.poll() is None


def test_agent_survives_memory_that_is_cut_off_and_serves_the_next_master(
    lab: Lab,
) -> None:
    _, agent, master = start(lab)
    card = master.card
    assert card is not None
    master.stop_card()
    for file in master.memory.files:
        os.ftruncate(file.fd, 0)
    lab.run_in_slave("ping", "-c", "3", "-i", "0.2", "-W", "1", MASTER_ADDRESS)
    lab.wait_carrier("NO-CARRIER")
    assert agent.process.poll() is None, agent.log
    master.close()
    lab.start_master(two_nodes()).load()
    lab.wait_carrier("UP")
    assert lab.ping_from_master() == 5
