# SPDX-License-Identifier: Apache-2.0
"""Any part may stop, be killed and come back; the others go on."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes.netns import private_network
from tests.process.lab import Lab
from tests.process.master import RX, TX, Master
from tests.process.program import Program
from tests.waiting import PROCESS_TIMEOUT, wait_for

pytestmark = pytest.mark.process

LATE = "the agent did not stop within 1 s"


def start(lab: Lab) -> tuple[Program, Program, Master]:
    daemon = lab.start_daemon()
    agent = lab.start_agent()
    master = lab.start_master()
    master.load()
    lab.wait_carrier("UP")
    return daemon, agent, master


@contextmanager
def start_shared(directory: Path) -> Iterator[Lab]:
    """A daemon, an agent and a master, for the tests in which only the driver changes.

    A part that was killed, stopped or started again would be another process for the
    next test: such a test has a separate lab.
    """
    with private_network(), Lab(directory) as lab:
        start(lab)
        lab.wait_state("running")
        yield lab


def works(lab: Lab) -> bool:
    """Whether packets cross both ways; the first may be lost on the way back up."""
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_master(1) == 1, "a first ping comes back")
    return lab.ping_from_master() == 5 and lab.ping_from_slave() == 5


def test_driver_that_is_unloaded_gets_the_rings_used_indexes(shared: Lab) -> None:
    master = shared.master
    for _ in range(3):
        shared.ping_from_master(20)
        card = master.card
        assert card is not None
        bases = master.unload()
        assert bases[TX] >= 20
        assert bases == [
            master.memory.load(driver.used + 2, 2) for driver in (card.rx, card.tx)
        ]
        shared.wait_carrier("NO-CARRIER")
        master.load()
        assert works(shared)


def test_agent_touches_nothing_once_the_front_end_has_its_answer(shared: Lab) -> None:
    master = shared.master
    flood = shared.start_server([*shared.slave.prefix, "ping", "-q", "-f", "10.9.0.1"])
    card = master.card
    assert card is not None
    first = card.rx.used_idx()
    wait_for(lambda: (card.rx.used_idx() - first) % 2**16 > 50, "the flood")
    bases = master.unload()
    before = master.memory.read(0, master.memory.size)
    time.sleep(0.5)
    assert flood.process.poll() is None
    assert master.memory.read(0, master.memory.size) == before
    assert bases[RX] == card_index(before, card.rx.used)
    flood.end(signal.SIGINT)
    master.load()
    assert works(shared)


def card_index(memory: bytes, used: int) -> int:
    return int.from_bytes(memory[used + 2 : used + 4], "little")


def test_carrier_follows_a_master_that_disconnects_and_reconnects(shared: Lab) -> None:
    shared.master.reconnect()
    shared.wait_carrier("NO-CARRIER")
    shared.master.load()
    assert works(shared)


def test_agent_that_ends_removes_its_tap_and_another_replaces_it(lab: Lab) -> None:
    _, agent, _ = start(lab)
    assert agent.end() == 0
    assert lab.carrier() is None
    assert lab.status()["agent"]["state"] == "none"
    lab.start_agent()
    assert works(lab)


def test_agent_that_is_killed_can_be_replaced(lab: Lab) -> None:
    _, agent, _ = start(lab)
    for _ in range(3):
        lab.ping_from_master()
        agent.end(signal.SIGKILL)
        agent = lab.start_agent()
        assert works(lab)


@pytest.mark.parametrize("kept", [False, True], ids=["killed", "ended"])
def test_tap_stays_for_the_next_agent(lab: Lab, kept: bool) -> None:
    lab.start_daemon()
    agent = lab.start_agent(*(("--keep-tap",) if kept else ()))
    lab.start_master().load()
    lab.wait_carrier("UP")
    lab.slave.run("ip route add 10.77.0.0/16 via 10.9.0.1")
    agent.end(signal.SIGTERM if kept else signal.SIGKILL)
    lab.wait_carrier("NO-CARRIER")
    agent = lab.start_agent()
    assert works(lab)
    assert "10.77.0.0/16 via 10.9.0.1" in lab.slave.output("ip", "route")
    assert agent.end() == 0
    assert lab.carrier() is None


def test_daemon_waits_only_once_for_an_agent_that_hangs(lab: Lab) -> None:
    """An agent that runs again after that does not touch the rings."""
    daemon, agent, master = start(lab)
    lab.ping_from_master()
    agent.send(signal.SIGSTOP)
    master.unload()
    # Two rings are asked for, one after the other; the second needs no wait.
    daemon.wait_log(LATE)
    assert daemon.said(LATE) == 1
    before = master.memory.read(0, master.memory.size)
    agent.send(signal.SIGCONT)
    lab.wait_carrier("NO-CARRIER")
    assert master.memory.read(0, master.memory.size) == before
    master.load()
    assert works(lab)


def test_daemon_does_not_wait_for_an_agent_that_is_absent(lab: Lab) -> None:
    daemon = lab.start_daemon()
    master = lab.start_master()
    master.load()
    assert master.unload() == [0, 0]
    assert not daemon.said(LATE)


def test_daemon_that_gets_sigterm_leaves_only_the_masters_memory(lab: Lab) -> None:
    daemon, _, _ = start(lab)
    assert daemon.end_within(1.0) == 0
    assert lab.files() == [lab.arena.name]
    lab.wait_carrier("NO-CARRIER")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_daemon_that_has_ended_can_be_replaced(
    lab: Lab, number: signal.Signals
) -> None:
    """The arena stays, as the master still has it as RAM."""
    daemon, _, master = start(lab)
    arena = lab.arena.stat().st_ino
    for _ in range(2):
        daemon.end(number)
        master.stop_card()
        daemon = lab.start_daemon()
        assert lab.arena.stat().st_ino == arena
        master.reconnect()
        master.load()
        assert works(lab)


def test_agent_leaves_a_ring_alone_when_another_party_writes_it(lab: Lab) -> None:
    """QEMU's own virtio-net writes it when the connection to the daemon has broken."""
    daemon, agent, master = start(lab)
    lab.ping_from_master()
    card = master.card
    assert card is not None
    daemon.send(signal.SIGSTOP)  # it cannot tell the agent
    moved = (card.tx.used_idx() + 7) % 2**16
    master.stop_card()
    card.tx.move_used(moved)
    lab.start_server([*lab.slave.prefix, "ping", "-q", "-f", "10.9.0.1"])
    time.sleep(0.5)
    assert card.tx.used_idx() == moved
    daemon.send(signal.SIGCONT)
    master.reconnect()
    master.load()
    assert works(lab)
    assert agent.process.poll() is None


def test_agent_may_start_after_the_master(lab: Lab) -> None:
    lab.start_daemon()
    lab.start_master().load()
    lab.start_agent()
    assert works(lab)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_at_any_moment_of_the_agents_end_change_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    with private_network(), Lab(tmp_path) as lab:
        lab.start_daemon()
        agent = lab.start_agent().process
        lab.wait_carrier("NO-CARRIER")
        end = time.monotonic() + PROCESS_TIMEOUT
        while agent.poll() is None:
            agent.send_signal(number)
            assert time.monotonic() < end
            time.sleep(0.0005)
        assert agent.returncode == 0
