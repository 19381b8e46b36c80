# SPDX-License-Identifier: Apache-2.0
"""A card with eight queue pairs: a worker each, and queues that come and go."""

import operator
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.fakes.netns import private_network
from tests.fakes.pair import Background
from tests.process.echo import Flows
from tests.process.lab import SLAVE_ADDRESS, SLAVE_TAP, Lab
from tests.process.master import Master
from tests.process.program import Program
from tests.threads import only_thread, thread_names
from tests.waiting import wait_for, when_still

pytestmark = pytest.mark.process

NAME = "net0"
PAIRS = 8
FLOWS = 64
PAUSE = 1.0
"""Seconds without a packet that end a round in which some may be lost."""


@contextmanager
def start_shared(directory: Path) -> Iterator[Lab]:
    """Everything, and an echo in the slave."""
    with private_network(), Lab(directory) as lab:
        lab.start_daemon("--queue-pairs", str(PAIRS))
        lab.start_agent()
        lab.start_master(queue_pairs=PAIRS).load(channels=PAIRS)
        echo = [*lab.slave.prefix, sys.executable, "-m", "tests.process.echo"]
        lab.start_server(echo).wait_log("ready")
        lab.wait_carrier("UP")
        wait_for(lambda: running(lab) == queues(PAIRS), "all rings run")
        wait_for(lambda: lab.ping_from_master(1) == 1, "a first ping comes back")
        yield lab


@pytest.fixture
def channels(shared: Lab) -> Iterator[Master]:
    """The shared lab's master; after the test it uses all its queue pairs again."""
    yield shared.master
    shared.master.set_channels(PAIRS)
    wait_for(lambda: running(shared) == queues(PAIRS), "all rings run")


def workers(agent: Program) -> list[str]:
    """The names of an agent's worker threads."""
    names = thread_names(agent.process.pid).values()
    return sorted(name for name in names if name.startswith(f"{NAME}/"))


def wake_ups(agent: Program, worker: str) -> int:
    """How often a worker has gone to sleep, and so has woken."""
    status = (only_thread(worker, agent.process.pid) / "status").read_text()
    return int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])


def running(lab: Lab) -> list[str]:
    """The queues that the agent runs."""
    rings = lab.status()["rings"]
    its = [(ring["queue"], ring["agent"] or {}) for ring in rings]
    return [queue for queue, agent in its if agent.get("state") == "running"]


def packets(lab: Lab) -> list[int]:
    """What has passed through each ring."""
    return [ring["agent"]["packets"] for ring in lab.status()["rings"]]


def queues(pairs: int) -> list[str]:
    return [f"{side}{pair}" for pair in range(pairs) for side in ("rx", "tx")]


def test_each_pair_has_a_worker_and_a_queue_of_the_tap(shared: Lab) -> None:
    assert workers(shared.agent) == [f"{NAME}/{pair}" for pair in range(PAIRS)]
    shown = shared.run_in_slave("ip", "-d", "link", "show", SLAVE_TAP).stdout
    assert f"numtxqueues {PAIRS}" in shown or "multi_queue" in shown
    assert shared.status()["agent"]["vectors"] == 1 + 2 * PAIRS


def test_many_flows_are_spread_over_all_queues_and_lose_nothing(shared: Lab) -> None:
    before = packets(shared)
    with Flows(SLAVE_ADDRESS, FLOWS) as flows:
        assert flows.rounds(20) == 0
    wait_for(
        lambda: all(map(operator.gt, packets(shared), before)),
        lambda: f"more packets in each ring than {before}: {packets(shared)}",
    )


def test_no_packet_is_lost_after_a_change_is_acknowledged(
    shared: Lab, channels: Master
) -> None:
    with Flows(SLAVE_ADDRESS, FLOWS) as flows:
        for pairs in (1, 3, 8, 2) * 10:
            channels.set_channels(pairs)
            assert flows.round() == 0
        wait_for(lambda: running(shared) == queues(2), "two pairs run")


def test_packets_cross_while_queues_come_and_go(channels: Master) -> None:
    """What is in a TAP's queue when it is left is lost, and no more than that."""
    changes = (8, 1, 4, 2) * 10
    with Flows(SLAVE_ADDRESS, FLOWS) as flows:
        with Background(partial(flows.round, wait=PAUSE)):
            for pairs in changes:
                channels.set_channels(pairs)
                time.sleep(0.02)
        # In these rounds what was only late comes back, too.
        assert flows.rounds(3) == 0
        # A queue that is left while packets are under way loses some of them, the more
        # the more rounds there are.  One that no worker reads loses all its flows.
        assert flows.lost < len(changes) + flows.sent // 50


def test_driver_that_reloads_has_all_its_queues_again(shared: Lab) -> None:
    master = shared.master
    with Flows(SLAVE_ADDRESS, FLOWS) as flows:
        for _ in range(3):
            assert flows.rounds(3) == 0
            master.unload()
            shared.wait_carrier("NO-CARRIER")
            master.load(channels=PAIRS)
            shared.wait_carrier("UP")
            wait_for(lambda: shared.ping_from_master(1) == 1, "a ping comes back")


def test_workers_end_with_their_pairs(lab: Lab) -> None:
    """The daemon is started again with fewer queue pairs: not in the shared lab."""
    daemon = lab.start_daemon("--queue-pairs", str(PAIRS))
    agent = lab.start_agent()
    wait_for(lambda: len(workers(agent)) == PAIRS, "eight workers")
    daemon.end()
    lab.start_daemon("--queue-pairs", "2")
    wait_for(lambda: workers(agent) == [f"{NAME}/0", f"{NAME}/1"], "two workers")
    lab.start_master(queue_pairs=2).load(channels=2)
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_master(1) == 1, "a ping comes back")
    wait_for(lambda: running(lab) == queues(2), "all rings run")


def test_worker_whose_queues_are_disabled_sleeps(shared: Lab, channels: Master) -> None:
    agent = shared.agent
    channels.set_channels(1)
    wait_for(lambda: running(shared) == queues(1), "one pair runs")

    def others() -> list[int]:
        return [wake_ups(agent, f"{NAME}/{pair}") for pair in range(1, PAIRS)]

    # A worker says that its queue is disabled just before it sleeps.
    idle = when_still(others, 0.2)
    with Flows(SLAVE_ADDRESS, FLOWS) as flows:
        assert flows.rounds(10) == 0
    assert others() == idle
