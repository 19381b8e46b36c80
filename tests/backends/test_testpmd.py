# SPDX-License-Identifier: Apache-2.0
"""DPDK on both sides: virtio-user as the master, and testpmd as the back-end.

The back-end forwards all packets between the master's card and a TAP that it makes in
the slave's namespace.  The master answers each ping.
"""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import pytest

from tests.backends import dpdk
from tests.backends.lab import BackEndLab
from tests.fakes.netns import private_network
from tests.frontends.testpmd import Testpmd
from tests.process.kept import replace
from tests.process.lab import ATTACH, MASTER_ADDRESS, SLAVE_ADDRESS, SLAVE_TAP
from tests.process.program import Program
from tests.processes import stop
from tests.waiting import wait_for

pytestmark = pytest.mark.backends


class Scene:
    """The lab, the back-end and the master, each of which a test may replace."""

    def __init__(self, directory: Path, program: tuple[str, ...]) -> None:
        self._directory = directory
        self._program = program
        self._stack = ExitStack()
        self.lab = self._stack.enter_context(BackEndLab(directory))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Start all of it."""
        self.lab.start_both("--keeper", "auto")
        self.start_back_end()
        self.start_master()

    def start_back_end(self) -> None:
        """Start a back-end, and give its TAP the slave's address."""
        self.back_end = dpdk.BackEnd(
            self._program,
            self._directory / "back-end",
            dpdk.vhost(self.lab.back_end, client=True),
            f"net_tap0,iface={SLAVE_TAP}",
            forward="io",
            prefix=tuple(self.lab.slave.prefix),
        )
        self._stack.callback(self.back_end.kill)
        self.back_end.started()
        self.lab.slave.run(f"ip addr replace {SLAVE_ADDRESS}/24 dev {SLAVE_TAP}")
        self.lab.slave.run(f"ip link set {SLAVE_TAP} up")

    def start_master(self) -> None:
        """Start a master, which answers pings."""
        self.master = Testpmd(self.lab.socket, self._directory)
        self._stack.callback(self.master.kill)
        self.master.started()

    def wait_answer(self) -> None:
        """Wait until a ping comes back."""
        wait_for(
            lambda: self.lab.ping_from_slave(1) == 1,
            lambda: f"a ping comes back\n{self.lab.agent.log}\n{self.lab.daemon.log}",
        )

    def wait_answers(self) -> None:
        """Wait until a ping comes back, and see that ten more do so."""
        self.wait_answer()
        assert self.lab.ping_from_slave(10) == 10

    @contextmanager
    def flood(self) -> Iterator[None]:
        """Have packets on their way in both directions while the block runs."""
        ping = ("ping", "-q", "-n", "-i", "0.005", "-s", "1000", MASTER_ADDRESS)
        argv = [*self.lab.slave.prefix, *ping]
        flood = Program(argv, self._directory / "flood.log")
        try:
            before = sum(self.master.counted())
            wait_for(lambda: sum(self.master.counted()) > before + 20, "packets flow")
            yield
        finally:
            flood.close()


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, testpmd: tuple[str, ...]
) -> Iterator[Scene]:
    """A scene that each test leaves working."""
    directory = tmp_path_factory.mktemp("shared")
    with private_network(), Scene(directory, testpmd) as scene:
        scene.start()
        scene.wait_answers()
        yield scene


def test_all_packets_pass_the_back_end_and_none_the_agent(shared: Scene) -> None:
    received, sent = shared.back_end.counted()
    assert shared.lab.ping_from_slave(20) == 20
    after = shared.back_end.counted()
    assert after[0] - received >= 20
    assert after[1] - sent >= 20
    assert shared.lab.packets() == [0, 0]


def test_agent_that_is_killed_can_be_replaced(shared: Scene) -> None:
    with shared.flood():
        shared.lab.agent.end(signal.SIGKILL)
        shared.lab.start_agent()
        shared.lab.wait_running()
        shared.wait_answer()
    shared.wait_answers()


def test_back_end_that_is_killed_can_be_replaced(shared: Scene) -> None:
    with shared.flood():
        shared.back_end.kill()
        shared.start_back_end()
        shared.wait_answer()
    shared.wait_answers()
    assert "it has closed the connection" in shared.lab.agent.log


def test_daemon_that_is_killed_is_replaced_for_the_same_master(shared: Scene) -> None:
    with shared.flood():
        replace(shared.lab)
        shared.wait_answer()
    shared.wait_answers()
    assert not shared.master.ended()


def test_back_end_that_stands_still_gets_no_ring_back_before_it_has_gone(
    shared: Scene,
) -> None:
    """It has the dead master's memory, so it must close its connection first."""
    with shared.flood():
        stop(shared.back_end.process.pid)
        shared.master.kill()
        shared.lab.agent.wait_log("still has the memory: end it")
        shared.start_master()
    shared.back_end.process.send_signal(signal.SIGCONT)
    shared.wait_answers()


def test_master_that_is_killed_can_be_replaced(shared: Scene) -> None:
    with shared.flood():
        shared.master.kill()
        shared.start_master()
    shared.wait_answers()


def test_daemon_that_nothing_replaces_takes_the_rings_with_it(shared: Scene) -> None:
    with shared.flood():
        shared.lab.daemon.end(signal.SIGKILL)
        wait_for(
            lambda: shared.lab.ping_from_slave(1, "-w", "1") == 0,
            "the rings have stopped",
        )
    shared.lab.start_daemon(*ATTACH, "--keeper", "auto")
    shared.master.kill()
    shared.start_master()
    shared.wait_answers()
