# SPDX-License-Identifier: Apache-2.0
"""A master's memory that is cut while packets flow: neither daemon nor agent dies."""

import pytest

from tests.process.lab import ATTACH, MASTER_ADDRESS, MEMORY, Lab
from tests.process.master import Ram
from tests.waiting import wait_for

pytestmark = pytest.mark.process


def test_daemon_and_agent_survive_memory_that_is_cut(lab: Lab) -> None:
    daemon = lab.start_daemon(*ATTACH)
    agent = lab.start_agent()
    master = lab.start_master(Ram.of_nodes(MEMORY))
    master.load()
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_master(1) == 1, "a first ping comes back")
    flood = [*lab.slave.prefix, "ping", "-q", "-f", MASTER_ADDRESS]
    lab.start_server(flood)
    before = packets(lab)
    wait_for(lambda: packets(lab) > before, "packets of the flood arrive")
    master.stop_card()
    master.memory.regions[0].cut()
    agent.wait_log("was cut off")
    lab.wait_carrier("NO-CARRIER")
    master.close()
    wait_for(lambda: not lab.status()["windows"], "the windows of its memory are gone")
    another = lab.start_master(Ram.of_nodes(MEMORY))
    another.load()
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_master(1) == 1, "a ping comes back")
    assert agent.process.poll() is None
    assert daemon.process.poll() is None


def packets(lab: Lab) -> int:
    """Return how many packets the agent has counted in the receive ring."""
    return int(lab.status()["rings"][0]["agent"]["packets"])
