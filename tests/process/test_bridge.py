# SPDX-License-Identifier: Apache-2.0
"""A switch: two agents whose TAPs join one bridge, and two masters that talk by it.

one's namespace                     the slave's                   another's
10.9.0.1 mtap0 ── daemon ── agent ── one ── br0 ── another ── agent ── daemon ── mtap0
                                                                            10.9.0.3
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.netns import private_network
from tests.process.lab import ATTACH, MASTER_ADDRESS, MEMORY, PING, Lab, ip, received
from tests.process.master import TAP, Master, Ram
from tests.process.program import Program, run
from tests.waiting import wait_for

pytestmark = pytest.mark.process

OTHER_ADDRESS = "10.9.0.3"


class Port:
    """A master, its daemon, and the agent that has it in the bridge."""

    def __init__(self, lab: Lab, tap: str, address: str) -> None:
        self._lab = lab
        self.tap = tap
        lab.start_daemon(*ATTACH)
        socket = lab.run_dir / "net0.vhost-user"
        self.master = Master(socket, Ram.of_nodes(MEMORY))
        ip("addr", "add", f"{address}/24", "dev", TAP)
        ip("link", "set", TAP, "up")
        self.master.load()
        self.agent: Program = lab.start_server(
            lab.agent_argv("--tap", tap, "--bridge", "br0")
        )
        wait_for(self.forwards, f"{tap} forwards in\n{self.agent.log}")

    def forwards(self) -> bool:
        """Whether the bridge forwards what its TAP sends."""
        shown = self._lab.run_in_slave("ip", "-d", "link", "show", self.tap).stdout
        return "master br0" in shown and "bridge_slave state forwarding" in shown


@pytest.fixture
def ports(lab: Lab, tmp_path: Path) -> Iterator[tuple[Port, Port]]:
    """Both of them; the other master is in a namespace of its own."""
    (tmp_path / "other").mkdir()
    with Lab(tmp_path / "other") as other:
        other.slave = lab.slave
        one = Port(lab, "one", MASTER_ADDRESS)
        with private_network():
            another = Port(other, "another", OTHER_ADDRESS)
        yield one, another
        another.master.close()
        one.master.close()


def ping(count: int = 10) -> int:
    """Ping the other master from the first; return how many came back."""
    return received(run(*PING, "-c", str(count), OTHER_ADDRESS))


def test_masters_talk_through_the_bridge(ports: tuple[Port, Port]) -> None:
    wait_for(lambda: ping(1) == 1, "a first ping comes back")
    assert ping() == 10


def test_bridge_that_is_made_again_is_joined_again(
    ports: tuple[Port, Port], lab: Lab
) -> None:
    lab.slave.run("ip link delete br0")
    for port in ports:
        port.agent.wait_log("bridge br0 is gone: make it again")
    lab.slave.run("ip link add br0 up type bridge forward_delay 0")
    for port in ports:
        wait_for(port.forwards, f"{port.tap} forwards")
    wait_for(lambda: ping(1) == 1, "a first ping comes back")
    assert ping() == 10
    assert all(port.agent.log.count("is gone") == 1 for port in ports)


def test_master_that_goes_takes_its_carrier_with_it(ports: tuple[Port, Port]) -> None:
    one, another = ports
    another.master.unload()
    wait_for(lambda: not another.forwards(), "the port of the master that went is off")
    assert one.forwards()
    another.master.load()
    wait_for(another.forwards, "it is on again")
    wait_for(lambda: ping(1) == 1, "a ping comes back")


def test_bridge_stays_when_the_agents_end(ports: tuple[Port, Port], lab: Lab) -> None:
    for port in ports:
        assert port.agent.end() == 0
    left = lab.run_in_slave("ip", "-o", "link", "show").stdout
    assert "br0" in left
    assert "one" not in left


def test_what_is_no_bridge_ends_the_agent_at_once(lab: Lab) -> None:
    agent = lab.start_server(lab.agent_argv("--bridge", "lo"))
    assert agent.process.wait(timeout=10) == 1
    assert "lo is no bridge but a card: choose another --bridge" in agent.log
