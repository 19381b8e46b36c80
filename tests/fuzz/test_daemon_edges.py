# SPDX-License-Identifier: Apache-2.0
"""The daemon's two edges: messages of the master's QEMU, metadata that a slave writes.

A short look by default; VHOSTPCI_FUZZ_EXAMPLES=100000 for a long one.  Whatever comes,
the device raises nothing, leaks nothing, and publishes only what an agent can check.
"""

import mmap
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.descriptors import open_descriptors
from tests.fakes.frontend import (
    USER_BASE,
    Dropped,
    FrontEnd,
    Refused,
    RingAt,
    region,
)
from tests.fakes.loop import ManualLoop
from tests.fakes.ports import RecordedSlave
from tests.fakes.windows import MIB
from tests.unit.host.scene import Scene, ToDevice
from vhostpci_shared import metadata as md
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request

MEMORY = 2 * MIB
fuzz = settings(max_examples=int(os.environ.get("VHOSTPCI_FUZZ_EXAMPLES", "100")))

NUMBERS = st.sampled_from(
    [
        *(0, 1, 2, 3, 255, 256, 0x1FF, 0x8000, 0xFFFF, 0x10000, 0x20000),
        *(MEMORY, 4 * MIB - md.SIZE, 4 * MIB, 2**31, 2**32 - 1, 2**63, 2**64 - 1),
        *(USER_BASE, USER_BASE + 0x10000, USER_BASE + MEMORY - 16),
    ]
)
WORDS = st.lists(NUMBERS, max_size=10).map(
    lambda words: b"".join(word.to_bytes(8, "little") for word in words)
)
PAYLOADS = st.one_of(
    WORDS,
    st.binary(max_size=80),
    st.tuples(st.integers(0, 3), st.integers(0, 3)).map(
        lambda pair: bytes(vu.VringState(*pair))
    ),
)
KINDS = ["ram", "eventfd", "pipe", "socket", "memfd", "directory"]
MESSAGES = st.tuples(
    st.sampled_from(list(Request)) | st.integers(0, 2**32 - 1),
    st.sampled_from([1, 9, 5, 13, 0]),
    PAYLOADS,
    st.lists(st.sampled_from(KINDS), max_size=3),
)


class Files:
    """One descriptor of each kind; `ram` is the master's memory."""

    def __init__(self, ram: int) -> None:
        self._ends = [*os.pipe()]
        self._ends += [end.detach() for end in socket.socketpair()]
        self.fds = {
            "ram": os.dup(ram),
            "eventfd": os.eventfd(0, os.EFD_NONBLOCK),
            "pipe": self._ends.pop(1),
            "socket": self._ends.pop(),
            "memfd": os.memfd_create("stray"),
            "directory": os.open("/", os.O_RDONLY),
        }

    def close(self) -> None:
        for fd in (*self._ends, *self.fds.values()):
            os.close(fd)


@contextmanager
def scene(*, attach: bool = False) -> Iterator[Scene]:
    before = len(open_descriptors())
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as name,
        Scene(Path(name), ManualLoop(), memory=0 if attach else MEMORY) as made,
    ):
        yield made
    assert len(open_descriptors()) == before
    assert not made.shown


@contextmanager
def ram(made: Scene) -> Iterator[int]:
    """The master's memory: the arena, or a file of its own."""
    if made.config.memory:
        yield made.device.store.file.fileno()
        return
    fd = os.memfd_create("ram")
    os.ftruncate(fd, MEMORY)
    try:
        yield fd
    finally:
        os.close(fd)


def check_published(scene: Scene) -> None:
    """What the agent is told is possible, and never reaches into the metadata."""
    snapshot = scene.device.store.metadata.snapshot()
    assert snapshot is not None
    sizes = scene.shown | {0: scene.device.store.size - md.SIZE}
    for one in snapshot.regions:
        assert one.offset + one.size <= sizes[one.window]
    for ring in snapshot.rings:
        if ring.runs:
            for start, size in (
                (ring.desc, 16 * ring.size),
                (ring.driver, 6 + 2 * ring.size),
                (ring.device, 6 + 8 * ring.size),
            ):
                assert any(
                    r.guest_addr <= start and start + size <= r.guest_addr + r.size
                    for r in snapshot.regions
                )


@fuzz
@given(st.lists(MESSAGES, max_size=25), st.booleans(), st.booleans())
def test_any_messages_are_taken_or_end_the_connection(
    messages: list[tuple[int, int, bytes, list[str]]], started: bool, attach: bool
) -> None:
    with scene(attach=attach) as made, ram(made) as fd:
        files = Files(fd)
        memory = [(region(MEMORY), fd)]
        try:
            made.slave()
            begin = made.running if started else made.front_end
            qemu: FrontEnd = begin(memory)
            transport = qemu.transport
            assert isinstance(transport, ToDevice)
            for request, flags, payload, kinds in messages:
                fds = [files.fds[kind] for kind in kinds]
                header = bytes(vu.Header(request, flags | vu.VERSION, len(payload)))
                transport.send(header + payload, fds)
                transport.port.sent.clear()
                made.loop.advance(0.002)
                check_published(made)
            made.settle()
            check_published(made)
        except (Dropped, Refused):
            made.device.master_gone()
            check_published(made)
        finally:
            files.close()


def scribble(made: Scene, slave: RecordedSlave, seed: int) -> None:
    """Write anything anywhere in the metadata, as a slave can, and ring."""
    numbers = random.Random(seed)
    with made.config.arena.open("r+b") as file:
        size = file.seek(0, 2)
        with mmap.mmap(file.fileno(), md.SIZE, offset=size - md.SIZE) as region:
            for _ in range(numbers.randrange(40)):
                at = numbers.choice([md.AGENT, md.AGENT_RINGS, md.HEADER, md.RINGS])
                at = min(at + numbers.randrange(0x200), md.SIZE - 8)
                value = numbers.choice(
                    [0, 1, 2, 3, 4, 2**64 - 1, numbers.getrandbits(64)]
                )
                region[at : at + 8] = value.to_bytes(8, "little")
    slave.ring(md.DAEMON_PEER, 0)


@fuzz
@given(st.lists(st.integers(0, 2**32), max_size=12))
def test_any_metadata_of_the_slave_leaves_master_and_daemon_in_order(
    seeds: list[int],
) -> None:
    with scene() as made:
        slave = made.slave()
        qemu = made.running()
        for turn, seed in enumerate(seeds):
            scribble(made, slave, seed)
            made.loop.advance(0.3)
            started = made.loop.now
            assert qemu.stop_ring(turn % 2) == 0
            assert made.loop.now - started < 1.1
            qemu.driver_ok([RingAt.nth(turn % 2)])
            made.settle()
        backend = made.device.backend
        assert backend is not None
        assert all(backend.runs(index) for index in range(2))
