# SPDX-License-Identifier: Apache-2.0
"""passt as the back-end of a User Mode Linux: no TAP, and nothing that polls.

User Mode Linux          daemon, agent          passt            a server
10.9.0.1  eth0 ─────────────────────────────── 10.9.0.2 ─ lo ─ 127.0.0.1
          :5202 ◄───────────────────────────── 127.0.0.1:5202 ◄─── a client
                                         (the slave's namespace)
"""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import pytest

from tests.backends.lab import BackEndLab
from tests.backends.passt import Passt
from tests.fakes.netns import private_network
from tests.frontends.uml import UserModeLinux, card
from tests.process.lab import SLAVE_ADDRESS
from tests.process.program import Program
from tests.processes import state
from tests.vm.programs import Unpacked
from tests.waiting import wait_for

pytestmark = pytest.mark.backends

STANDS = 1.5
"""Seconds for which passt stands still."""
FORWARDED = 5202
"""The master's port for which passt takes connections in the slave's namespace."""


class Scene:
    """The lab, passt and the master."""

    def __init__(self, directory: Path, files: Unpacked) -> None:
        self._directory = directory
        self._files = files
        self._stack = ExitStack()
        self.lab = self._stack.enter_context(BackEndLab(directory, listens=False))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Start all of it."""
        self.lab.slave.run("ip link set lo up")
        self.start_passt()
        # It lacks most features, so it must be there before the master asks for them.
        self.lab.start_both()
        self.lab.wait_withheld("NET_F_CSUM")
        uml = UserModeLinux(card(self.lab.socket), self._directory)
        self.master = self._stack.enter_context(uml)
        self.master.up()
        self.lab.wait_running()

    def start_passt(self) -> None:
        """Start passt."""
        self.passt = Passt(
            self._files, self.lab.back_end, self.lab.slave, ports=str(FORWARDED)
        )
        self._stack.callback(self.passt.close)

    def serve(self, *options: str) -> Program:
        """Start a server for one measurement."""
        command = ["iperf3", "-s", "-1", "--forceflush", *options]
        server = self.lab.start_server([*self.lab.slave.prefix, *command])
        server.wait_log("listening")
        return server

    def measure_forwarded(self, *options: str) -> float:
        """Return the MB of one TCP stream that a client of the slave's opens."""
        listens = f"grep -q ':{FORWARDED:04X} .* 0A ' /proc/net/tcp*"
        # The server of the measurement before may not have ended yet.
        self.master.run(f"while {listens}; do sleep 0.1; done")
        self.master.run(f"iperf3 -s -1 -D -p {FORWARDED}")
        self.master.run(f"until {listens}; do sleep 0.1; done")
        client = ("iperf3", "-J", "-p", str(FORWARDED), "-c", "127.0.0.1", "-t", "1")
        return _megabytes(json.loads(self.lab.run_in_slave(*client, *options).stdout))

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Have a TCP stream run, for three seconds and those in which nothing moves."""
        server = self.serve("-i", "0.2")
        command = f"iperf3 -J -b 40M -n 15M -c {SLAVE_ADDRESS}"
        self.master.run(f"{command} > /tmp/stream &")
        wait_for(lambda: "sec" in server.log, lambda: server.log)
        yield
        report = json.loads(self.master.run("wait; cat /tmp/stream"))
        server.wait()
        # Of 15, what is under way when the client has sent all of it is not counted.
        assert _megabytes(report) > 10

    @contextmanager
    def no_kicks_until_passt_has_stopped(self) -> Iterator[None]:
        """Have the master stand still until passt has seen that the agent is gone.

        passt ends with an error if it sees a kick together with that.
        """
        self.passt.start_log_here()
        pid = self.passt.process.pid
        with self.master.standing_still():
            wait_for(lambda: state(pid) == "S", "passt has seen all kicks, and sleeps")
            yield
            self.passt.wait_log("Client connection closed")

    def measure(self, *options: str) -> float:
        """Return the MB that went through one TCP stream."""
        server = self.serve()
        command = f"iperf3 -J -c {SLAVE_ADDRESS} {' '.join(options)}"
        report = json.loads(self.master.run(command))
        server.wait()  # the next one needs its port
        return _megabytes(report)


def _megabytes(report: dict[str, Any]) -> float:
    assert "error" not in report, report["error"]
    return float(report["end"]["sum_received"]["bytes"]) / 1e6


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, stack: Unpacked
) -> Iterator[Scene]:
    """A scene that each test leaves working."""
    directory = tmp_path_factory.mktemp("shared")
    with private_network(), Scene(directory, stack) as scene:
        scene.start()
        yield scene


def test_master_is_offered_what_passt_can_do(shared: Scene) -> None:
    assert shared.lab.status()["master"]["features"] == [
        "NET_F_MRG_RXBUF",
        "F_VERSION_1",
    ]


@pytest.mark.parametrize("options", [(), ("-R",)], ids=["from it", "to it"])
def test_tcp_flows(shared: Scene, options: tuple[str, ...]) -> None:
    assert shared.measure("-t", "1", *options) > 0.1


@pytest.mark.parametrize("options", [(), ("-R",)], ids=["to it", "from it"])
def test_tcp_flows_by_a_forwarded_port(shared: Scene, options: tuple[str, ...]) -> None:
    assert shared.measure_forwarded(*options) > 0.1


def test_tcp_stream_survives_the_agent_that_is_killed(shared: Scene) -> None:
    with shared.stream():
        with shared.no_kicks_until_passt_has_stopped():
            shared.lab.agent.end(signal.SIGKILL)
        assert shared.master.run("pidof iperf3")
        shared.lab.start_agent()


def test_tcp_stream_survives_a_passt_that_stands_still(shared: Scene) -> None:
    shared.lab.agent.start_log_here()
    with shared.stream():
        shared.passt.send(signal.SIGSTOP)
        time.sleep(STANDS)
        assert shared.master.run("pidof iperf3")
        shared.passt.send(signal.SIGCONT)
    assert not shared.lab.agent.log


def test_passt_that_stands_still_delays_the_end_of_no_agent(shared: Scene) -> None:
    """It is asked to stop the rings, for a bounded time, and serves the next agent."""
    with shared.no_kicks_until_passt_has_stopped():
        shared.passt.send(signal.SIGSTOP)
        assert shared.lab.agent.end_within(5) == 0
        shared.lab.start_agent()
        shared.lab.wait_state("agent is waiting")
        shared.passt.send(signal.SIGCONT)
    shared.lab.wait_running()
    assert shared.measure("-t", "1") > 0.1


def test_passt_that_is_killed_can_be_replaced(shared: Scene) -> None:
    shared.passt.end(signal.SIGKILL)
    shared.lab.agent.wait_log("it has closed the connection")
    shared.start_passt()
    shared.lab.wait_running()
    assert shared.measure("-t", "1") > 0.1
