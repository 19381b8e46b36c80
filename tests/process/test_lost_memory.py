# SPDX-License-Identifier: Apache-2.0
"""A master's memory that is cut while packets flow: neither daemon nor agent dies."""

import time

import pytest

from tests.process.lab import ATTACH, MASTER_ADDRESS, MEMORY, Lab
from tests.process.master import Ram
from tests.waiting import wait_for

pytestmark = pytest.mark.process


def test_memory_that_is_cut_ends_nobody(lab: Lab) -> None:
    daemon = lab.start_daemon(*ATTACH)
    agent = lab.start_agent()
    master = lab.start_master(Ram.of_nodes(MEMORY))
    master.load()
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_master(1) == 1, "a first ping comes back")
    flood = [*lab.slave.prefix, "ping", "-q", "-f", MASTER_ADDRESS]
    lab.start_server(flood)
    time.sleep(0.2)
    master.stop_card()
    master.memory.regions[0].cut()
    agent.wait_log("was cut off")
    lab.wait_carrier("NO-CARRIER")
    master.close()
    wait_for(lambda: not lab.status()["windows"], "its memory is named no more")
    another = lab.start_master(Ram.of_nodes(MEMORY))
    another.load()
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_master(1) == 1, "a ping comes back")
    assert agent.process.poll() is None
    assert daemon.process.poll() is None
