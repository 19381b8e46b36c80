# SPDX-License-Identifier: Apache-2.0
"""Hostile metadata, as a daemon or its user may write it, at an agent's device.

An input is a list of doings.  `run` does them, and then checks that the agent still
serves a daemon that behaves.
"""

import json
from collections.abc import Callable
from dataclasses import replace

from tests.descriptors import open_descriptors
from tests.fakes.bar import MEMORY, SIZE, pair, ring
from tests.fuzz.edges.choices import Choices
from tests.unit.guest.bench import Bench
from vhostpci_guest.dataplane.faults import Fault
from vhostpci_guest.errors import Unusable
from vhostpci_shared import metadata as md
from vhostpci_shared.metadata import AgentRingState
from vhostpci_shared.units import confined

MOST = 60
PLACES = (0, 0x1000, 0x10000, 0x14000, 0x18000, SIZE - md.SIZE, SIZE - 0x1000, SIZE)
WINDOWS = (0, md.FIRST_WINDOW, md.FIRST_WINDOW + 1, md.LAST_WINDOW, 1, 65536)
OF_A_REGION = ("offset", "size", "guest_addr")
WIDE = ("desc", "driver", "device", "session", "origin")
OF_A_RING = (*WIDE, "size", "base", "kick_vector", "call_peer", "call_vector")
STARTS = (md.HEADER, md.GENERATION_OFFSET, md.HEARTBEAT_OFFSET, md.DEVICE)
TABLES = (md.REGIONS, md.RINGS, md.AGENT, md.AGENT_RINGS, md.POSITIONS)


class Play:
    """One input: a link, the metadata in front of it, and a data plane behind it."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        mode = choices.byte()
        self.bench = Bench(vectors=5, interrupts=bool(mode & 1))
        self.bench.device.eventfds = bool(mode & 2)
        self.bench.daemon.publish()
        self.bench.attach()
        self.served = True
        """Whether the link is there: a device that cannot be served has none."""

    def do(self, doing: Callable[["Play"], None]) -> None:
        """Do something, and let the agent see it."""
        doing(self)
        try:
            self.bench.ticks(1)
        except Unusable:
            self.end_link()
        self.check()

    def check(self) -> None:
        """Check that the data plane was given no memory but that of the windows."""
        there = (self.bench.windows.find(number) for number in WINDOWS[1:])
        windows = [self.bench.device.window, *(one for one in there if one)]
        for region in self.bench.planes[-1].memory if self.bench.running else ():
            assert any(
                one.address <= region.host_addr
                and region.host_addr + region.size <= one.address + one.size
                for one in windows
            ), "memory that is in no window"

    def end_link(self) -> None:
        """End the link, as the agent does with a device that cannot be served."""
        assert self.bench.link is not None
        self.bench.link.close()
        self.bench.link, self.served = None, False

    # What a daemon does.

    def publish(self) -> None:
        """Publish what has the right form, with values near each bound."""
        choices = self.choices
        rings = tuple(self._ring() for _ in range(2 * choices.below(4)))
        device = md.Device(
            instance=choices.below(3),
            features=choices.number(1 << 32, 0x1_4000_0000),
            flags=md.DeviceFlag(choices.below(8)),
            queue_pairs=choices.of((len(rings) // 2, choices.below(40))),
            vectors=choices.of((1 + len(rings), choices.below(8))),
            daemon_peer=choices.number(md.DAEMON_PEER) & 0xFFFF,
            mtu=choices.number(1500, 68) & 0xFFFF,
            region_count=0,
            ring_count=0,
            name=choices.raw(choices.below(4)).decode("latin-1"),
        )
        regions = tuple(self._region() for _ in range(choices.below(4)))
        # Only shown: a daemon may say that anything is shared of any memory.
        confined = md.Confined(
            shared=choices.number(0, SIZE), memory=choices.number(0, 2 * SIZE)
        )
        self.bench.daemon.metadata.publish(device, regions, rings, confined)

    def _region(self) -> md.Region:
        choices = self.choices
        return md.Region(
            guest_addr=choices.number(*PLACES),
            size=choices.number(*PLACES),
            window=choices.of(WINDOWS),
            offset=choices.number(*PLACES),
        )

    def _ring(self) -> md.Ring:
        choices = self.choices
        return md.Ring(
            session=choices.number(),
            flags=md.RingFlag(choices.below(64)),
            size=choices.number(256) & 0xFFFF_FFFF,
            desc=choices.number(*PLACES),
            driver=choices.number(*PLACES),
            device=choices.number(*PLACES),
            base=choices.number() & 0xFFFF_FFFF,
            call_peer=choices.number(2, 3) & 0xFFFF,
            call_vector=choices.number(0, 1) & 0xFFFF,
            kick_vector=choices.number(1, 2) & 0xFFFF,
            kick_peer=choices.number(0, 2) & 0xFFFF,
            origin=choices.number(),
        )

    def publish_well(self) -> None:
        """Publish what a daemon publishes that behaves."""
        session = self.choices.byte()
        rings = [
            ring(at, session=session) for at in range(2 + 2 * self.choices.below(2))
        ]
        self.bench.daemon.publish(*rings)

    def publish_nearly_well(self) -> None:
        """Publish what a daemon publishes that behaves, with one value changed."""
        choices = self.choices
        rings, regions = [ring(at, session=choices.byte()) for at in range(2)], [MEMORY]
        if choices.flag():
            change = {choices.of(OF_A_REGION): choices.number(*PLACES)}
            regions = [replace(MEMORY, **change)]
        else:
            name = choices.of(OF_A_RING)
            value = choices.number(*PLACES) % (2**64 if name in WIDE else 2**16)
            index = choices.below(2)
            rings[index] = replace(rings[index], **{name: value})  # type: ignore[arg-type]
        self.bench.daemon.publish(*rings, regions=tuple(regions))

    def scribble(self) -> None:
        """Write a word anywhere in the metadata."""
        at = self.choices.of((*STARTS, *TABLES)) + 8 * self.choices.below(256)
        generation = self.bench.daemon.metadata.generation()
        value = self.choices.number(generation + 2, generation + 1)
        view = self.bench.device.window.view[-md.SIZE :]
        view[at : at + 8] = value.to_bytes(8, "little")
        view.release()

    def format(self) -> None:
        """Begin to write everything again."""
        self.bench.daemon.metadata.format()

    def plug(self) -> None:
        """Plug a window, or pull it."""
        number = self.choices.of(WINDOWS[1:4])
        if self.bench.windows.find(number) is None:
            self.bench.windows.plug(number, self.choices.of((SIZE, 0x1000, md.SIZE)))
        else:
            self.bench.windows.pull(number)

    def lose_peers(self) -> None:
        """Have a peer go, or come again."""
        self.bench.device.absent ^= {self.choices.below(4)}

    def interrupt(self) -> None:
        """Interrupt a vector."""
        vector = self.choices.below(5)
        if self.bench.device.vector(vector) is not None:
            self.bench.device.interrupt(vector)

    # What the data plane and the machine do.

    def break_ring(self) -> None:
        """Have a ring stop by itself."""
        if self.bench.running:
            index = self.choices.of(sorted(self.bench.running))
            state = self.choices.of((AgentRingState.BROKEN, AgentRingState.FENCED))
            fault = self.choices.of(tuple(Fault))
            self.bench.plane.stop_by_itself(index, state, "why", fault)

    def move_ring(self) -> None:
        """Have a ring move on."""
        if self.bench.running:
            index = self.choices.of(sorted(self.bench.running))
            self.bench.plane.move(index, self.choices.number() & 0xFFFF)

    def be_silent(self) -> None:
        """Have the daemon say nothing for some seconds."""
        self.bench.ticks(1 + self.choices.below(14), daemon=False)

    def suspend(self) -> None:
        """Stop serving until the metadata changes."""
        if self.bench.link is not None:
            self.bench.link.suspend("no descriptors are left")

    def ask_status(self) -> None:
        """Ask for the status, which is sent as JSON and shown as text."""
        if self.bench.link is None:
            return
        status = self.bench.link.status()
        json.dumps(status)
        if status["confined"] is not None:
            assert confined(status["confined"])

    def end(self) -> None:
        """Check that a daemon that behaves is served, and close everything."""
        if self.served:
            self.bench.device.absent = set()
            self.bench.daemon.metadata.format()
            for index in range(2):
                self.bench.set_used(index, 0)  # rings that no back-end has worked
            # Twice: the first generation may be the very one that was scribbled.
            for _ in range(2):
                self.bench.daemon.publish(*pair(1 << 40))
                self.bench.ticks(2)
            assert self.bench.running == {0, 1}, "a good daemon is not served"


DOINGS: tuple[Callable[[Play], None], ...] = (
    *(Play.publish, Play.publish_nearly_well, Play.publish_nearly_well),
    *(Play.publish_well, Play.scribble, Play.scribble),
    *(Play.format, Play.plug, Play.lose_peers, Play.interrupt, Play.break_ring),
    *(Play.move_ring, Play.be_silent, Play.suspend, Play.ask_status),
)


def make() -> None:
    """There is nothing that is the same for all inputs."""


def run(_: None, data: bytes) -> None:
    """Do what an input says; fail if the agent does not bear it."""
    choices = Choices(data)
    before = len(open_descriptors())
    play = Play(choices)
    doings = 0
    while choices.left and play.served and doings < MOST:
        play.do(choices.of(DOINGS))
        doings += 1
    play.end()
    play.bench.close()
    assert len(open_descriptors()) == before, "a descriptor is left"
