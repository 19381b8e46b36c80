# SPDX-License-Identifier: Apache-2.0
"""A process that comes back at once has to wait; one that waits by itself does not."""

import os
import socket
from collections.abc import Iterator

import pytest

from tests.fakes.loop import ManualLoop
from vhostpci_host.daemon.admission import (
    AT_ONCE,
    FORGET,
    FREE,
    LONGEST_PAUSE,
    MOST,
    Admission,
)


class Door:
    """An admission, and a process that connects to it and is refused each time."""

    def __init__(self) -> None:
        self.loop = ManualLoop()
        self.served = 0
        self.admission = Admission(self.loop, self._refuse)

    def _refuse(self, connection: socket.socket) -> None:
        self.served += 1
        self.admission.left(os.getpid())
        connection.close()

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.admission.arrive(ours)
        return theirs

    def waits(self, theirs: socket.socket) -> float:
        """Return for how long its connection is open and unanswered."""
        start = self.loop.now
        theirs.setblocking(False)
        while True:
            try:
                assert theirs.recv(1) == b""
                break
            except BlockingIOError:
                self.loop.advance(0.01)
        theirs.close()
        return self.loop.now - start


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    door.admission.close()


def test_process_that_comes_back_at_once_waits_longer_each_time(door: Door) -> None:
    pauses = [door.waits(door.connect()) for _ in range(FREE + 12)]
    assert pauses[: FREE + 1] == [0.0] * (FREE + 1)
    growing = pauses[FREE + 1 :]
    assert growing == sorted(growing)
    assert growing[-1] == pytest.approx(LONGEST_PAUSE, abs=0.02)


def test_storm_of_a_qemu_that_starts_is_a_few_attempts_a_minute(door: Door) -> None:
    while door.loop.now < 1060.0:
        door.waits(door.connect())
        door.loop.advance(0.001)
    assert door.served < 45


def test_running_qemu_that_tries_each_second_never_waits(door: Door) -> None:
    for _ in range(100):
        assert door.waits(door.connect()) == 0.0
        door.loop.advance(1.0)


def test_process_that_was_useful_does_not_wait(door: Door) -> None:
    for _ in range(20):
        door.waits(door.connect())
        door.admission.welcome(os.getpid())
    assert door.waits(door.connect()) == 0.0


def test_visits_are_counted_and_forgotten(door: Door) -> None:
    assert door.admission.visits(os.getpid()) == 0
    for count in (1, 2, 3):
        door.waits(door.connect())
        assert door.admission.visits(os.getpid()) == count
    door.loop.advance(FORGET)
    assert door.admission.visits(os.getpid()) == 0


def test_process_that_hangs_up_while_it_waits_is_not_served(door: Door) -> None:
    for _ in range(FREE + 1):
        door.waits(door.connect())
    served, visits = door.served, door.admission.visits(os.getpid())
    door.connect().close()
    door.loop.advance(LONGEST_PAUSE)
    assert door.served == served
    assert door.admission.visits(os.getpid()) == visits + 1


def test_number_of_connections_that_wait_is_bounded(door: Door) -> None:
    for _ in range(FREE + 1):
        door.waits(door.connect())
    waiting = [door.connect() for _ in range(MOST + 1)]
    assert door.waits(waiting.pop()) == 0.0
    door.admission.close()
    for theirs in waiting:
        theirs.setblocking(False)
        assert theirs.recv(1) == b""
        theirs.close()


def test_storm_of_hours_is_still_answered(door: Door) -> None:
    """The pause would be a number that no float can hold, if it only grew."""
    for _ in range(FREE + 12):
        door.waits(door.connect())
    served = door.served
    for _ in range(1100):
        theirs = door.connect()
        door.loop.advance(LONGEST_PAUSE)
        theirs.close()
    assert door.served == served + 1100


def test_process_that_was_here_longest_ago_is_forgotten_for_another_one(
    door: Door,
) -> None:
    first, second, third, *others = range(1, 4 * MOST + 1)
    for pid in (first, second, third, *others, second):
        door.admission.left(pid)
    for pid in (5000, 5001):
        door.admission.left(pid)
    known = (first, second, third, *others, 5000, 5001)
    forgotten = [pid for pid in known if not door.admission.visits(pid)]
    assert forgotten == [first, third]
    assert door.admission.visits(second) == 2


def test_return_after_a_while_is_not_at_once(door: Door) -> None:
    for _ in range(20):
        door.waits(door.connect())
    door.loop.advance(AT_ONCE)
    assert door.waits(door.connect()) == 0.0
