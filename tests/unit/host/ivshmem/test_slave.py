# SPDX-License-Identifier: Apache-2.0
"""When the peer of earlier call eventfds is dropped."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.fakes.loop import ManualLoop
from tests.fakes.ports import RecordedSlave
from vhostpci_host.fds import Fd, Notifier
from vhostpci_host.ivshmem.doorbells import VectorSet
from vhostpci_host.ivshmem.relays import LoopRelays
from vhostpci_host.ivshmem.slave import RETIRE, Slave
from vhostpci_shared import metadata as md

FIRST, SECOND = md.FIRST_CALL_PEER, md.FIRST_CALL_PEER + 1
LAST = 8
"""The last generation that may name the first peer."""


class Replaced:
    """A slave whose first call peer was replaced by a second one."""

    def __init__(self, undo: ExitStack) -> None:
        self.loop = ManualLoop()
        self.port = RecordedSlave(2)
        undo.callback(self.port.close)
        memory = undo.enter_context(Fd(os.memfd_create("memory")))
        doorbell = undo.enter_context(Notifier.new())
        vectors = VectorSet([None])
        self.slave = Slave(self.port, self.loop, vectors, relays=LoopRelays(self.loop))
        self.slave.greet(memory, doorbell)
        undo.callback(self.slave.close)
        for generation in (LAST - 2, LAST):
            call = undo.enter_context(Notifier.new())
            assert self.slave.introduce([call], [None], generation)

    @property
    def peers(self) -> set[int]:
        """The call peers that the slave has."""
        return set(self.port.peers) - {md.DAEMON_PEER}


@pytest.fixture
def replaced() -> Iterator[Replaced]:
    with ExitStack() as undo:
        yield Replaced(undo)


def test_old_peer_stays_until_the_agent_answers_a_generation_without_it(
    replaced: Replaced,
) -> None:
    """Until then the agent may ring it."""
    for reached in (0, LAST - 2, LAST):
        replaced.slave.retire(reached)
        assert replaced.peers == {FIRST, SECOND}
    replaced.slave.retire(LAST + 2)
    assert replaced.peers == {SECOND}


def test_old_peer_goes_after_a_time_without_an_answer(replaced: Replaced) -> None:
    replaced.loop.advance(RETIRE - 0.01)
    replaced.slave.retire(LAST)
    assert replaced.peers == {FIRST, SECOND}
    replaced.loop.advance(0.02)
    replaced.slave.retire(LAST)
    assert replaced.peers == {SECOND}
