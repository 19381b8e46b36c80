# SPDX-License-Identifier: Apache-2.0
"""Attach mode: a master with memory of its own, and an agent that is a process."""

import os
import signal
import time

import pytest

from tests.process.lab import ATTACH, MASTER_ADDRESS, PING, Lab
from tests.process.master import Master, Ram
from tests.process.program import Program
from tests.process.test_packets import iperf
from tests.waiting import wait_for
from vhostpci_shared.vhost_user import MemRegion

pytestmark = pytest.mark.process

MIB = 1 << 20


def two_nodes() -> Ram:
    """Rings and some buffers in the first file, other buffers in the second."""
    return Ram.of_nodes(7 * MIB, 25 * MIB)


def test_packets_of_a_master_with_two_nodes(lab: Lab) -> None:
    lab.start_daemon(*ATTACH)
    lab.start_agent()
    lab.start_master(two_nodes()).load()
    lab.wait_carrier("UP")
    assert lab.ping_from_master(10, "-s", "60000") == 10
    assert lab.ping_from_slave(10, "-s", "60000") == 10
    assert iperf(lab, from_master=True) > 1.0
    windows = lab.status()["windows"]
    assert [window["size"] for window in windows] == [7 * MIB, 25 * MIB]
    assert all(window["connected"] for window in windows)


def test_windows_come_and_go_with_the_master(lab: Lab) -> None:
    lab.start_daemon(*ATTACH)
    lab.start_agent()
    for _ in range(3):
        master = lab.start_master(two_nodes())
        master.load()
        lab.wait_carrier("UP")
        assert lab.ping_from_master() == 5
        master.close()
        lab.wait_carrier("NO-CARRIER")
        wait_for(lambda: not lab.status()["windows"], "the windows are gone")


def test_kicks_go_straight_to_an_agent_that_comes_later(lab: Lab) -> None:
    """The daemon has nothing to do with a packet: it relays none, and sleeps."""
    daemon = lab.start_daemon(*ATTACH)
    lab.start_master(two_nodes()).load()
    wait_for(
        lambda: all(ring["state"] == "running" for ring in lab.status()["rings"]),
        "the rings run",
    )
    lab.start_agent()
    lab.wait_carrier("UP")
    before = lab.status()["rings"]
    wakes = sleeps(daemon.process.pid)
    assert lab.ping_from_slave(30) == 30
    woken = sleeps(daemon.process.pid) - wakes
    rings = lab.status()["rings"]
    assert all(ring["kick_direct"] for ring in rings)
    assert [r["kicks_relayed"] for r in rings] == [r["kicks_relayed"] for r in before]
    assert rings[1]["agent"]["kicks"] > 20, "of what the master sends"
    assert woken < 50, "3 s of pings are some 12 ticks and one status"


def sleeps(pid: int) -> int:
    """How often a process has gone to sleep."""
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        fields = dict(line.split(":", 1) for line in lines)
    return int(fields["voluntary_ctxt_switches"])


def test_memory_that_comes_while_packets_flow_costs_none(lab: Lab) -> None:
    lab.start_daemon(*ATTACH)
    lab.start_agent()
    memory = two_nodes()
    master = lab.start_master(memory)
    master.load()
    lab.wait_carrier("UP")
    extra = Ram.of_nodes(MIB)
    table = master.frontend.regions
    (one, fd), high = extra.memory_table()[0], 1 << 32
    moved = MemRegion(high, one.size, one.user_addr + high, 0)
    ping = lab.start_server([*lab.slave.prefix, *PING, "-c", "40", MASTER_ADDRESS])
    while ping.process.poll() is None:
        longer = [*table, (moved, fd)]
        master.frontend.regions = table if master.frontend.regions == longer else longer
        master.frontend.set_memory()
        time.sleep(0.2)
    assert "40 received" in ping.log
    extra.close()


def start(lab: Lab) -> tuple[Program, Program, Master]:
    daemon = lab.start_daemon(*ATTACH)
    agent = lab.start_agent()
    master = lab.start_master(two_nodes())
    master.load()
    lab.wait_carrier("UP")
    return daemon, agent, master


def test_agent_that_is_killed_is_followed_by_another(lab: Lab) -> None:
    _, agent, _ = start(lab)
    assert lab.ping_from_master() == 5
    agent.end(signal.SIGKILL)
    lab.start_agent()
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_master(1) == 1, "a first ping comes back")
    assert lab.ping_from_master() == 5


def test_killed_daemon_is_followed_by_another_with_other_windows(lab: Lab) -> None:
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


def test_agent_survives_memory_that_is_cut_off(lab: Lab) -> None:
    """And serves the master that comes after it."""
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
