# SPDX-License-Identifier: Apache-2.0
"""A front-end that leaves in the middle of what it says, again and again."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.fakes.frontend import Dropped, FrontEnd, RingAt, Socket
from tests.fakes.netns import private_network
from tests.process.lab import Lab
from tests.waiting import wait_for

pytestmark = pytest.mark.process

TURNS = 60
RINGS = [RingAt.nth(0), RingAt.nth(1)]


class Cut(Socket):
    """A connection that ends after so many messages, with half of the next one."""

    def __init__(self, path: Path, messages: int) -> None:
        super().__init__(path)
        self._left = messages

    def send(self, data: bytes, fds: Sequence[int]) -> None:
        if not self._left:
            super().send(data[: len(data) // 2], fds)
            raise Dropped("cut")
        self._left -= 1
        super().send(data, fds)


@contextmanager
def start_shared(directory: Path) -> Iterator[Lab]:
    """A daemon and an agent, and a master that comes and goes."""
    with private_network(), Lab(directory) as lab:
        lab.start_daemon()
        lab.start_agent()
        lab.start_master().load()
        lab.wait_carrier("UP")
        yield lab


def test_starts_and_stops_that_end_in_the_middle(shared: Lab) -> None:
    """DPDK 73ea44370d, 21d9fb6bad, 0b2a2ca350: what was freed is used."""
    master, numbers = shared.master, random.Random(1)
    programs = shared.daemon, shared.agent
    before = [program.descriptors() for program in programs]
    master.stop_card()
    master.frontend.close()
    for _ in range(TURNS):
        transport = Cut(shared.run_dir / "net0.vhost-user", numbers.randrange(60))
        table = master.memory.memory_table()
        with FrontEnd(transport, table) as front_end, suppress(Dropped):
            front_end.connect()
            while True:
                front_end.driver_ok(RINGS)
                front_end.stop_ring(numbers.randrange(2))
    master.reconnect()
    master.load()
    shared.wait_carrier("UP")
    wait_for(lambda: shared.ping_from_master(1) == 1, "a first ping comes back")
    assert shared.ping_from_master() == shared.ping_from_slave() == 5
    for program, descriptors in zip(programs, before, strict=True):
        wait_for(lambda p=program, n=descriptors: p.descriptors() <= n, "descriptors")  # type: ignore[misc]
        assert not program.said("Traceback")
