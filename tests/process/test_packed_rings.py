# SPDX-License-Identifier: Apache-2.0
"""Packed rings whose agent or daemon dies in the middle of traffic, and is replaced."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.netns import private_network
from tests.process.lab import ATTACH, MEMORY, Lab
from tests.process.master import Master, Ram
from tests.waiting import wait_for

pytestmark = pytest.mark.process

# Not -f: with it, ping keeps to the interval that the usual ping has named.
FLOOD = ("-i", "0.001", "-s", "1400")


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with private_network(), Lab(tmp_path) as lab:
        yield lab


def start(lab: Lab, *options: str, memory: Ram | None = None) -> Master:
    """Start all with a master whose card has packed rings."""
    lab.start_daemon(*options)
    lab.start_agent()
    master = lab.start_master(memory, packed=True)
    master.load()
    assert works(lab)
    return master


def works(lab: Lab) -> bool:
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_slave(1) == 1, "a first ping comes back")
    return lab.ping_from_slave() == 5 and lab.ping_from_master() == 5


def flood(lab: Lab) -> None:
    """Go around the rings, which have 256 descriptors."""
    lab.ping_from_slave(300, *FLOOD)


def formats(lab: Lab) -> set[str]:
    return {ring["format"] for ring in lab.status()["rings"]}


def test_packets_cross_over_many_laps(lab: Lab) -> None:
    master = start(lab)
    assert formats(lab) == {"packed"}
    flood(lab)
    assert works(lab)
    bases = master.unload()
    assert all(base >> 16 == base & 0xFFFF for base in bases)
    assert set(bases) != {0x8000_8000}
    master.load()
    assert works(lab)


def test_next_agent_goes_on_after_each_of_several_kills(lab: Lab) -> None:
    start(lab)
    argv = [*lab.slave.prefix, "ping", "-q", "-f", "-s", "20000", "10.9.0.1"]
    flooding = lab.start_server(argv)
    for _ in range(3):
        lab.ping_from_master(20, "-i", "0.02")
        lab.agent.end(signal.SIGKILL)
        lab.start_agent()
        lab.wait_carrier("UP")
    flooding.end(signal.SIGINT)
    assert works(lab)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_driver_goes_on_with_the_next_daemon(lab: Lab, number: signal.Signals) -> None:
    master = start(lab)
    for _ in range(2):
        flood(lab)
        lab.daemon.end(number)
        lab.start_daemon()
        master.come_back()
        assert works(lab)
        assert "stands at" in lab.daemon.log


def test_driver_goes_on_when_daemon_and_agent_have_died(lab: Lab) -> None:
    master = start(lab)
    flood(lab)
    for program in (lab.agent, lab.daemon):
        program.end(signal.SIGKILL)
    lab.start_daemon()
    master.come_back()
    lab.start_agent()
    assert works(lab)


def test_driver_that_is_loaded_again_with_the_next_daemon_starts_from_the_beginning(
    lab: Lab,
) -> None:
    """Its rings are where the old ones were, and have the same base as old ones."""
    master = start(lab)
    flood(lab)
    lab.daemon.end(signal.SIGKILL)
    master.stop_card()
    lab.start_daemon()
    master.reconnect()
    master.load()
    assert works(lab)
    assert "stands at" not in lab.daemon.log


def test_agent_knows_where_rings_stand_when_the_metadata_ends_with_the_daemon(
    lab: Lab,
) -> None:
    """That is so in attach mode.  If the agent ends as well, nothing knows it."""
    master = start(lab, *ATTACH, memory=Ram.of_nodes(MEMORY))
    flooding = lab.start_server([*lab.slave.prefix, "ping", "-q", "-f", "10.9.0.1"])
    for _ in range(2):
        flood(lab)
        lab.daemon.end(signal.SIGKILL)
        daemon = lab.start_daemon(*ATTACH)
        master.come_back()
        assert works(lab)
        assert "stands at" in daemon.log
        assert "reload the master's driver" not in daemon.log
    flooding.end(signal.SIGINT)
    for program in (lab.agent, lab.daemon):
        program.end(signal.SIGKILL)
    daemon = lab.start_daemon(*ATTACH)
    master.come_back()
    lab.start_agent()
    daemon.wait_log("nothing says where it stands")
    assert {ring["problem"] for ring in lab.status()["rings"]} == {
        "nothing says where it stands"
    }
    master.unload()
    master.load()
    assert works(lab)
