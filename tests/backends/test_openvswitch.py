# SPDX-License-Identifier: Apache-2.0
"""Open vSwitch with DPDK between two masters, each with a daemon and an agent.

User Mode Linux a ── daemon, agent ── v0 ┐
                                         ├ br0 of Open vSwitch
User Mode Linux b ── daemon, agent ── v1 ┘
"""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.backends.lab import BackEndLab
from tests.backends.openvswitch import OpenVSwitch
from tests.fakes.netns import private_network
from tests.frontends.uml import UserModeLinux, card
from tests.vm.programs import Unpacked
from tests.waiting import wait_for

pytestmark = pytest.mark.backends

STANDS = 1.5
"""Seconds for which a switch stands still."""
ADDRESSES = ("10.9.0.1", "10.9.0.3")


class Scene:
    """The switch, and what is on each of its ports."""

    def __init__(self, directory: Path, files: Unpacked, stack: ExitStack) -> None:
        self._stack = stack
        self._directory = directory
        self.switch = OpenVSwitch(files, directory / "switch")
        self.labs: list[BackEndLab] = []
        self.masters: list[UserModeLinux] = []

    def start(self) -> None:
        """Start all of it."""
        self._stack.enter_context(self.switch)
        for number, address in enumerate(ADDRESSES):
            self._add(number, address)
        self.wait_reachable()

    def _add(self, number: int, address: str) -> None:
        directory = self._directory / str(number)
        directory.mkdir()
        lab = self._stack.enter_context(BackEndLab(directory))
        self.labs.append(lab)
        lab.start_both()
        self.switch.add_port(f"v{number}", lab.back_end)
        # It knows fewer features than the daemon: the master must not ask before.
        lab.wait_withheld("NET_F_HOST_USO")
        uml = UserModeLinux(card(lab.socket), directory)
        self.masters.append(self._stack.enter_context(uml))
        mac = f"52:54:00:09:00:0{number + 1}"
        uml.run(
            f"ip link set eth0 address {mac} up && ip addr add {address}/24 dev eth0"
        )
        lab.wait_running()

    def wait_reachable(self) -> None:
        """Wait until a ping comes back."""
        ping = f"ping -n -q -c 1 -W 1 {ADDRESSES[1]}"
        first = self.masters[0]
        wait_for(
            lambda: "1 received" in first.run(ping, check=False),
            lambda: "\n".join(
                [self.switch.switch.log, *(x.agent.log for x in self.labs)]
            ),
        )

    @contextmanager
    def flood(self) -> Iterator[None]:
        """Have packets on their way in both directions while the block runs."""
        first = self.masters[0]
        command = f"ping -q -n -i 0.005 -s 1000 {ADDRESSES[1]}"
        first.run(f"{command} > /dev/null & echo $! > /tmp/flood")
        try:
            yield
        finally:
            first.run("kill $(cat /tmp/flood)")

    def megabits(self) -> float:
        """Return Mbit/s of a second of TCP between the masters."""
        one, other = self.masters
        other.run("iperf3 -s -1 -D")
        other.run("until grep -q :1451 /proc/net/tcp*; do sleep 0.1; done")
        report = json.loads(one.run(f"iperf3 -J -t 1 -c {ADDRESSES[1]}"))
        assert "error" not in report, report["error"]
        return float(report["end"]["sum_received"]["bits_per_second"]) / 1e6


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, switch: Unpacked
) -> Iterator[Scene]:
    """A scene that each test leaves working."""
    directory = tmp_path_factory.mktemp("shared")
    with private_network(), ExitStack() as stack:
        scene = Scene(directory, switch, stack)
        scene.start()
        yield scene


def test_tcp_flows_between_two_masters(shared: Scene) -> None:
    assert shared.megabits() > 0.1


def test_switch_that_is_killed_finds_its_ports_again(shared: Scene) -> None:
    shared.switch.restart(signal.SIGKILL)
    shared.wait_reachable()


def test_agent_that_is_killed_leaves_the_other_port_alone(shared: Scene) -> None:
    other = len(shared.labs[1].agent.log)
    shared.labs[0].agent.end(signal.SIGKILL)
    shared.labs[0].start_agent()
    shared.labs[0].wait_running()
    shared.wait_reachable()
    assert "closed the connection" not in shared.labs[1].agent.log[other:]


def test_switch_that_stands_still_goes_on_with_the_rings(shared: Scene) -> None:
    agents = [lab.agent for lab in shared.labs]
    for agent in agents:
        agent.start_log_here()
    with shared.flood():
        shared.switch.switch.send(signal.SIGSTOP)
        time.sleep(STANDS)
        shared.switch.switch.send(signal.SIGCONT)
        shared.wait_reachable()
    assert [agent.log for agent in agents] == ["", ""]


def test_switch_that_stands_still_delays_the_end_of_no_agent(shared: Scene) -> None:
    """It is asked to stop the rings, for a bounded time, and finds the next agent."""
    lab = shared.labs[0]
    with shared.flood():
        shared.switch.switch.send(signal.SIGSTOP)
        lab.agent.start_log_here()
        assert lab.agent.end_within(5) == 0
        lab.start_agent()
        lab.wait_state("agent is waiting")
        shared.switch.switch.send(signal.SIGCONT)
        shared.wait_reachable()
