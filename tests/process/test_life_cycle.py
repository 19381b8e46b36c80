# SPDX-License-Identifier: Apache-2.0
"""Any part may stop, die and come back; the others go on."""

import signal
import time

import pytest

from tests.process.lab import Lab
from tests.process.master import RX, TX, Master
from tests.process.program import Program
from tests.waiting import wait_for

pytestmark = pytest.mark.process

QUIESCE = 1.0


def start(lab: Lab) -> tuple[Program, Program, Master]:
    daemon = lab.start_daemon()
    agent = lab.start_agent()
    master = lab.start_master()
    master.load()
    lab.wait_carrier("UP")
    return daemon, agent, master


def works(lab: Lab) -> bool:
    """Whether packets cross both ways; the first may be lost on the way back up."""
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_master(1) == 1, "a first ping comes back")
    return lab.ping_from_master() == 5 and lab.ping_from_slave() == 5


def test_driver_reloads_and_gets_the_true_indices(lab: Lab) -> None:
    _, _, master = start(lab)
    for _ in range(3):
        lab.ping_from_master(20)
        card = master.card
        assert card is not None
        bases = master.unload()
        assert bases[TX] >= 20
        assert bases == [
            master.memory.load(driver.used + 2, 2) for driver in (card.rx, card.tx)
        ]
        lab.wait_carrier("NO-CARRIER")
        master.load()
        assert works(lab)


def test_agent_touches_nothing_once_the_front_end_has_its_answer(lab: Lab) -> None:
    _, _, master = start(lab)
    flood = lab.start_server([*lab.slave.prefix, "ping", "-q", "-f", "10.9.0.1"])
    card = master.card
    assert card is not None
    wait_for(lambda: card.rx.used_idx() > 50, "the flood")
    bases = master.unload()
    before = master.memory.read(0, master.memory.size)
    time.sleep(0.5)
    assert flood.process.poll() is None
    assert master.memory.read(0, master.memory.size) == before
    assert bases[RX] == card_index(before, card.rx.used)


def card_index(memory: bytes, used: int) -> int:
    return int.from_bytes(memory[used + 2 : used + 4], "little")


def test_carrier_goes_with_the_master_and_comes_back_with_it(lab: Lab) -> None:
    _, _, master = start(lab)
    master.reconnect()
    lab.wait_carrier("NO-CARRIER")
    master.load()
    assert works(lab)


def test_agent_that_ends_leaves_nothing_and_another_goes_on(lab: Lab) -> None:
    _, agent, _ = start(lab)
    assert agent.end() == 0
    assert lab.carrier() is None
    assert lab.status()["agent"]["state"] == "none"
    lab.start_agent()
    assert works(lab)


def test_agent_that_is_killed_is_followed_by_another(lab: Lab) -> None:
    _, agent, _ = start(lab)
    for _ in range(3):
        lab.ping_from_master()
        agent.end(signal.SIGKILL)
        agent = lab.start_agent()
        assert works(lab)


def test_agent_that_hangs_holds_the_master_no_longer_than_a_second(lab: Lab) -> None:
    """And when it comes back late it keeps its hands off the ring."""
    _, agent, master = start(lab)
    lab.ping_from_master()
    agent.send(signal.SIGSTOP)
    began = time.monotonic()
    master.unload()
    # Two rings are asked for, one after the other; the second needs no wait.
    assert time.monotonic() - began < QUIESCE + 0.5
    before = master.memory.read(0, master.memory.size)
    agent.send(signal.SIGCONT)
    lab.wait_carrier("NO-CARRIER")
    assert master.memory.read(0, master.memory.size) == before
    master.load()
    assert works(lab)


def test_absent_agent_holds_nobody(lab: Lab) -> None:
    lab.start_daemon()
    master = lab.start_master()
    master.load()
    began = time.monotonic()
    assert master.unload() == [0, 0]
    assert time.monotonic() - began < QUIESCE


def test_daemon_that_is_told_to_end_leaves_nothing(lab: Lab) -> None:
    daemon, _, _ = start(lab)
    began = time.monotonic()
    assert daemon.end() == 0
    assert time.monotonic() - began < 1.0
    assert lab.files() == []
    lab.wait_carrier("NO-CARRIER")


def test_killed_daemon_is_followed_by_another(lab: Lab) -> None:
    """The arena stays, as the master still has it as RAM."""
    daemon, _, master = start(lab)
    arena = lab.arena.stat().st_ino
    for _ in range(2):
        daemon.end(signal.SIGKILL)
        master.stop_card()
        daemon = lab.start_daemon()
        assert lab.arena.stat().st_ino == arena
        master.reconnect()
        master.load()
        assert works(lab)


def test_another_writer_on_the_ring_is_noticed_and_left_alone(lab: Lab) -> None:
    """QEMU's own virtio-net, once the connection broke without the agent's knowing."""
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


def test_master_first_then_daemon_restarts_then_agent(lab: Lab) -> None:
    lab.start_daemon()
    lab.start_master().load()
    lab.start_agent()
    assert works(lab)
