# SPDX-License-Identifier: Apache-2.0
"""Hostile back-ends, as the agent's data plane vhost-user meets them.

An input is a list of doings.  `run` does them, and then checks that a back-end that
behaves gets the rings.
"""

import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.descriptors import open_descriptors
from tests.fakes.back_end import FakeBackEnd
from tests.fuzz.edges.choices import Choices
from tests.unit.guest.dataplane.vhost_user.scene import Scene
from vhostpci_guest.dataplane.interface import RingRefused
from vhostpci_guest.dataplane.vhost_user import dialogue, pause
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.metadata import AgentRingState
from vhostpci_shared.vhost_user import ProtocolFeature, Request

MOST = 60
RINGS = 4
REPLIES = (*sorted(vu.REPLIES), Request.SET_MEM_TABLE, Request.SET_VRING_ENABLE)
FLAGS = (5, 5, 5, 1, 4, 6, 13, 0xFFFF_FFFF)
SIZES = (8, 8, 8, 0, 4, 9, 4096, 4097, 2**32 - 1)


class Arrivals:
    """An `Approach` by which a back-end comes when the input says so."""

    path = Path("/back-end")
    problem = ""

    def __init__(self) -> None:
        self.waiting: list[socket.socket] = []

    def fileno(self) -> None:
        """Have back-ends taken at each tick."""

    def take(self) -> socket.socket | None:
        """Return the next one."""
        return self.waiting.pop() if self.waiting else None

    def tick(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Close those that were not taken."""
        while self.waiting:
            self.waiting.pop().close()


class Play:
    """One input: a data plane, and the back-ends that come."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        self.arrivals = Arrivals()
        self.scene = Scene(self.arrivals.path, 2, self.arrivals)
        self.back_end: FakeBackEnd | None = None

    # What back-ends do.

    def come(self) -> None:
        """Have a back-end come in place of the last."""
        self.go()
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.arrivals.waiting.append(theirs)
        self.back_end = FakeBackEnd(ours)
        self.back_end.lies = True
        self.scene.tick(1 + self.choices.below(2))

    def meet(self) -> None:
        """Have a back-end come and say what it can do."""
        self.come()
        for _ in range(6):
            self.serve()
            self.look()

    def change(self) -> None:
        """Have it able to do something else."""
        if self.back_end is not None:
            self.back_end.features = self.choices.number(2**30, 2**32)
            self.back_end.queue_pairs = self.choices.number(1, 2)
            self.back_end.memory_slots = self.choices.number(1, 8, 9)
            known = ProtocolFeature(self.choices.number() & 0xFFFF)
            self.back_end.protocol = known

    def serve(self) -> None:
        """Have it answer as it should."""
        self._send(lambda back_end: back_end.serve())

    def refuse(self) -> None:
        """Have it refuse what it is asked from now on."""
        if self.back_end is not None:
            self.back_end.refuses ^= {self.choices.of(tuple(Request))}

    def be_silent(self) -> None:
        """Have it not answer one kind of question."""
        if self.back_end is not None:
            self.back_end.instead[self.choices.of(REPLIES)] = lambda: None

    def answer(self) -> None:
        """Have it send an answer, of any form."""
        request = self.choices.of(REPLIES)
        header = vu.Header(
            request, self.choices.of(FLAGS), self.choices.of(SIZES) & 0xFFFF_FFFF
        )
        value = self.choices.number(0, 1, request) & (2**64 - 1)
        data = bytes(header) + value.to_bytes(8, "little")
        fds = (0,) * self.choices.below(3) if self.choices.below(8) == 0 else ()
        self._send(lambda back_end: back_end.send(data, fds))

    def scribble(self) -> None:
        """Have it send any bytes."""
        data = self.choices.raw(1 + self.choices.below(40)) or b"\0"
        self._send(lambda back_end: back_end.send(data))

    def go(self) -> None:
        """Have it die."""
        if self.back_end is not None:
            self.back_end.close()
            self.back_end = None

    def _send(self, do: Callable[[FakeBackEnd], None]) -> None:
        if self.back_end is not None:
            with suppress(EOFError, ConnectionError, BlockingIOError):
                do(self.back_end)

    # What the link does.

    def look(self) -> None:
        """Have the data plane look."""
        self.scene.look()

    def tick(self) -> None:
        """Let some time pass."""
        self.scene.tick(1 + self.choices.below(30))

    def start(self) -> None:
        """Start a ring, as `Rings` does."""
        index = self.choices.below(RINGS)
        plane = self.scene.plane
        running = plane.status(index).state is AgentRingState.RUNNING
        if not plane.waiting and not running:
            features = self.choices.number(2**32)
            with suppress(RingRefused):
                plane.start(index, self.scene.conf(features=features))

    def stop(self) -> None:
        """Ask for the stop of a ring."""
        self.scene.stops(self.choices.below(RINGS))

    def change_memory(self) -> None:
        """Replace the master's memory, when no ring runs."""
        if self.stopped():
            self.scene.plane.set_memory(
                self.scene.regions if self.choices.flag() else ()
            )

    def stopped(self) -> bool:
        """Stop all rings within the time that there is for that."""
        for _ in range(dialogue.BASE + 1):
            indexes = [self.scene.stops(index) for index in range(RINGS)]
            if None not in indexes:
                return True
            self.scene.tick()
        raise AssertionError("a ring has not stopped in time")

    def end(self) -> None:
        """Check that a back-end that behaves gets the rings."""
        self.stopped()
        self.go()
        self.scene.plane.set_memory(self.scene.regions)
        self.scene.tick(pause.LONGEST + 1)
        self.come()
        self.scene.tick(2)
        back_end = self.back_end
        assert back_end is not None
        self.scene.talk(back_end)
        assert self.scene.plane.waiting == "", self.scene.plane.waiting
        self.scene.plane.set_memory(self.scene.regions)
        self.scene.start()
        self.scene.talk(back_end)
        assert back_end.heard.count(Request.SET_VRING_ENABLE) == 2
        assert self.scene.plane.status(0).state is AgentRingState.RUNNING

    def close(self) -> None:
        """Close everything."""
        self.go()
        self.scene.__exit__()


DOINGS: tuple[Callable[[Play], None], ...] = (
    *(
        Play.meet,
        Play.meet,
        Play.come,
        Play.serve,
        Play.serve,
        Play.serve,
        Play.look,
        Play.look,
        Play.look,
    ),
    *(
        Play.start,
        Play.start,
        Play.start,
        Play.stop,
        Play.answer,
        Play.answer,
        Play.scribble,
    ),
    *(Play.tick, Play.change, Play.refuse, Play.be_silent, Play.go),
    Play.change_memory,
)


def make() -> None:
    """There is nothing that is the same for all inputs."""


def run(_: None, data: bytes) -> None:
    """Do what an input says; fail if the agent does not bear it."""
    choices = Choices(data)
    before = len(open_descriptors())
    play = Play(choices)
    doings = 0
    while choices.left and doings < MOST:
        choices.of(DOINGS)(play)
        doings += 1
    play.end()
    play.close()
    assert len(open_descriptors()) == before, "a descriptor is left"
