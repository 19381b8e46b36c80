# SPDX-License-Identifier: Apache-2.0
"""The agent's loop on a thread of the test's, and how fast it answers."""

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.fakes.bar import FakeDaemon
from tests.fakes.pair import Background
from tests.fakes.plane import FakePlane, FakePort
from tests.waiting import eventually
from vhostpci_guest.agent import Agent, Signals
from vhostpci_guest.interfaces import Source
from vhostpci_guest.tap.tap_port import TapPort
from vhostpci_shared.metadata import AgentState


class Planes:
    """Makes data planes, and keeps them."""

    def __init__(self) -> None:
        self.made: list[FakePlane] = []
        self.no_more = False
        """Whether the machine has no thread for another."""

    def __call__(self, port: TapPort, device: str) -> FakePlane:
        if self.no_more:
            raise OSError(11, "no thread")
        self.made.append(FakePlane(port, device))
        return self.made[-1]

    def port(self, device: str) -> FakePort:
        """Make a port whose data planes these are."""
        return FakePort(device, self)


@contextmanager
def running(source: Source, *daemons: FakeDaemon) -> Iterator[None]:
    """Run an agent that serves the first daemon, and the heartbeats of all."""
    agent = Agent(source, Planes().port)
    with in_loop(agent), Background(lambda: _beat(daemons)):
        assert eventually(lambda: _serves(daemons[0]))
        yield


@contextmanager
def in_loop(agent: Agent) -> Iterator[None]:
    """Run the agent's loop in a thread; close the agent at the end."""
    read, write = socket.socketpair()
    read.setblocking(False)
    signals = Signals(read)
    thread = threading.Thread(target=agent.run, args=(signals,))
    thread.start()
    try:
        yield
    finally:
        signals.stopping = True
        write.send(b"x")
        thread.join()
        read.close()
        write.close()
        agent.close()


def _beat(daemons: Sequence[FakeDaemon]) -> None:
    for daemon in daemons:
        daemon.beat()
    time.sleep(0.1)


def _serves(daemon: FakeDaemon) -> bool:
    agent = daemon.agent()
    return agent.state is AgentState.READY and agent.generation > 0


def answer_time(daemon: FakeDaemon, generation: int) -> float:
    """Return the seconds until the agent has answered a generation."""
    start = time.monotonic()
    assert eventually(lambda: daemon.agent().generation == generation)
    return time.monotonic() - start
