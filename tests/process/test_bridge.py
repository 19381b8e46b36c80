# SPDX-License-Identifier: Apache-2.0
"""A switch: two agents whose TAPs join one bridge, and two masters that talk by it.

one's namespace                     the slave's                   another's
10.9.0.1 mtap0 ── daemon ── agent ── one ── br0 ── another ── agent ── daemon ── mtap0
                                                                            10.9.0.3
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.fakes.netns import private_network
from tests.pings import came_back, ping
from tests.process.lab import (
    ATTACH,
    MASTER_ADDRESS,
    MEMORY,
    Lab,
    set_up_master,
)
from tests.process.master import Master, Ram
from tests.process.program import Program, run
from tests.process.shared import Shared
from tests.waiting import wait_for

pytestmark = pytest.mark.process

OTHER_ADDRESS = "10.9.0.3"


class Port:
    """A master, its daemon, and the agent that has it in the bridge."""

    def __init__(self, lab: Lab, tap: str, address: str) -> None:
        self.lab = lab
        self.tap = tap
        lab.start_daemon(*ATTACH)
        socket = lab.run_dir / "net0.vhost-user"
        self.master = Master(socket, Ram.of_nodes(MEMORY))
        set_up_master(address)
        self.master.load()
        self.agent: Program = lab.start_server(
            lab.agent_argv("--tap", tap, "--bridge", "br0")
        )
        wait_for(self.forwards, f"{tap} forwards in\n{self.agent.log}")

    def forwards(self) -> bool:
        """Whether the bridge forwards what its TAP sends."""
        shown = self.lab.run_in_slave("ip", "-d", "link", "show", self.tap).stdout
        return "master br0" in shown and "bridge_slave state forwarding" in shown


Ports = tuple[Port, Port]


@contextmanager
def switch(directory: Path) -> Iterator[Ports]:
    """Start both ports; the other master is in a separate namespace."""
    (directory / "other").mkdir()
    with private_network(), Lab(directory) as lab, Lab(directory / "other") as other:
        other.slave = lab.slave
        one = Port(lab, "one", MASTER_ADDRESS)
        with closing(one.master):
            with private_network():
                another = Port(other, "another", OTHER_ADDRESS)
            with closing(another.master):
                yield one, another


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[Ports]:
    """A switch of the test's own, of which it may delete the bridge or end an agent."""
    with switch(tmp_path) as ports:
        yield ports


@contextmanager
def unchanged(ports: Ports) -> Iterator[None]:
    """Fail a test that does not leave a switch as it found it."""
    one, another = ports
    with one.lab.unchanged(), another.lab.unchanged():
        yield
        for port in ports:
            wait_for(port.forwards, f"{port.tap} forwards as before the test")


@pytest.fixture(scope="module")
def switches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared[Ports]]:
    """A switch for the tests that leave it as they found it."""
    with Shared(
        lambda: switch(tmp_path_factory.mktemp("switch")), unchanged
    ) as switches:
        yield switches


@pytest.fixture
def shared(switches: Shared[Ports]) -> Iterator[Ports]:
    """That switch; a test that leaves it changed fails."""
    with switches.lent() as ports:
        yield ports


def answers(count: int = 10) -> int:
    """Ping the other master from the first; return how many came back."""
    done = run(*ping(count), OTHER_ADDRESS)
    return came_back(done.stdout + done.stderr, count)


@pytest.mark.usefixtures("shared")
def test_masters_ping_each_other_through_the_bridge() -> None:
    wait_for(lambda: answers(1) == 1, "a first ping comes back")
    assert answers() == 10


def test_agents_join_a_bridge_that_was_deleted_and_made_again(ports: Ports) -> None:
    slave = ports[0].lab.slave
    slave.run("ip link delete br0")
    for port in ports:
        port.agent.wait_log("bridge br0 is gone: make it again")
    slave.run("ip link add br0 up type bridge forward_delay 0")
    for port in ports:
        wait_for(port.forwards, f"{port.tap} forwards")
    wait_for(lambda: answers(1) == 1, "a first ping comes back")
    assert answers() == 10
    assert all(port.agent.log.count("is gone") == 1 for port in ports)


def test_driver_that_is_unloaded_switches_off_its_port_alone(shared: Ports) -> None:
    one, another = shared
    another.master.unload()
    wait_for(lambda: not another.forwards(), "that port is off")
    assert one.forwards()
    another.master.load()
    wait_for(another.forwards, "it is on again")
    wait_for(lambda: answers(1) == 1, "a ping comes back")


def test_bridge_stays_when_the_agents_end(ports: Ports) -> None:
    for port in ports:
        assert port.agent.end() == 0
    left = ports[0].lab.run_in_slave("ip", "-o", "link", "show").stdout
    assert "br0" in left
    assert "one" not in left


def test_bridge_option_that_names_a_card_ends_the_agent(lab: Lab) -> None:
    agent = lab.start_server(lab.agent_argv("--bridge", "lo"))
    assert agent.wait() == 1
    assert "lo is no bridge but a card: choose another --bridge" in agent.log
