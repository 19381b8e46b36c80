# SPDX-License-Identifier: Apache-2.0
"""Hostile input at two edges: a front-end's messages, and a slave's metadata.

By default each test tries a few hundred examples; VHOSTPCI_FUZZ_EXAMPLES sets another
number, for example 100000.  Whatever comes, the device raises no error but those of a
protocol, leaks no descriptor, answers in time, and publishes only memory that exists.
tools/mutants.py plants errors that these tests must find.
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
SHARED, WHOLE = 32 * MIB, 1024 * MIB
"""Of a confined device: its shared region, and all of its master's memory."""
fuzz = settings(max_examples=int(os.environ.get("VHOSTPCI_FUZZ_EXAMPLES", "200")))

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
# Version 1 alone, with NEED_REPLY, with REPLY, with both; and no version.
FLAGS = st.sampled_from([1, 9, 5, 13, 0])
RAW_MESSAGES = st.tuples(
    st.sampled_from(list(Request)) | st.integers(0, 2**32 - 1),
    FLAGS,
    PAYLOADS,
    st.lists(st.sampled_from(KINDS), max_size=3),
)

# Raw messages nearly all fail at the first check.  These have the right form, and
# values on both sides of each bound, so that they reach the checks behind it.
Sent = tuple[int, int, bytes, list[str]]
# After the short one, the next message finds the daemon in the middle of a change;
# within the long one, the daemon publishes.
PAUSES = st.sampled_from([0.002, 0.2])
INDEXES = st.integers(0, 2)
STARTS = st.sampled_from([0, 0x1000, MEMORY // 2, MEMORY - 0x1000, SHARED])
ARENA_END = 4 * MIB - md.SIZE  # of an arena for MEMORY: the metadata begins there
SIZES = st.sampled_from(
    [
        *(0x1000, MEMORY, MEMORY + 0x1000, ARENA_END, ARENA_END + 0x1000, 4 * MIB),
        *(SHARED, SHARED + 0x1000),
    ]
)
AREAS = st.sampled_from(
    [USER_BASE + start for start in (0, 0x4000, 0x8000, MEMORY - 0x1000, MEMORY - 64)]
)
REGIONS = st.builds(
    lambda start, size, offset: vu.MemRegion(start, size, USER_BASE + start, offset),
    STARTS,
    SIZES,
    STARTS,
)
SIZE_REQUESTS = [Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.GET_VRING_BASE]
NOTIFIERS = [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR]


def formed(
    requests: list[Request],
    payloads: st.SearchStrategy[vu.Payload],
    kinds: st.SearchStrategy[list[str]],
) -> st.SearchStrategy[Sent]:
    """Return messages of these requests with such payloads and descriptors."""
    return st.tuples(
        st.sampled_from(requests),
        # With NEED_REPLY (9) a refused request does not end the connection.
        st.sampled_from([9, 9, 9, 1]),
        payloads.map(bytes),
        kinds,
    )


MESSAGES = st.one_of(
    RAW_MESSAGES,
    formed(
        SIZE_REQUESTS,
        st.builds(vu.VringState, INDEXES, st.sampled_from([0, 1, 3, 256, 1024])),
        st.just([]),
    ),
    formed(
        [Request.SET_VRING_ENABLE],
        st.builds(vu.VringState, INDEXES, st.integers(0, 2)),
        st.just([]),
    ),
    formed(
        NOTIFIERS,
        st.builds(vu.VringFd, INDEXES),
        st.sampled_from(KINDS).map(lambda kind: [kind]),
    ),
    formed(
        [Request.SET_VRING_ADDR],
        st.builds(vu.VringAddr, INDEXES, st.just(0), AREAS, AREAS, AREAS),
        st.just([]),
    ),
    formed(
        [Request.SET_MEM_TABLE],
        REGIONS.map(lambda one: vu.MemTable((one,))),
        st.sampled_from([["ram"], ["ram"], ["memfd"], []]),
    ),
    formed(
        [Request.ADD_MEM_REG, Request.REM_MEM_REG],
        REGIONS.map(vu.SingleRegion),
        st.sampled_from([["ram"], ["ram"], ["memfd"]]),
    ),
)


class Files:
    """One open descriptor of each kind; `ram` is the master's memory."""

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
def scene(*, attach: bool = False, confined: bool = False) -> Iterator[Scene]:
    before = len(open_descriptors())
    memory = 0 if attach else WHOLE if confined else MEMORY
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as name,
        Scene(Path(name), ManualLoop(), memory=memory, confined=confined) as made,
    ):
        yield made
    assert len(open_descriptors()) == before
    assert not made.shown


@contextmanager
def ram(made: Scene) -> Iterator[int]:
    """Open the master's memory: the arena, or in attach mode another file."""
    if made.config.memory:
        yield made.device.store.file.fileno()
        return
    fd = os.memfd_create("ram")
    os.ftruncate(fd, made.config.shared or MEMORY)
    try:
        yield fd
    finally:
        os.close(fd)


def check_published(scene: Scene) -> None:
    """Assert that all published memory lies in a window, and outside the metadata."""
    snapshot = scene.device.store.metadata.snapshot()
    assert snapshot is not None
    sizes = scene.shown | {0: scene.device.store.size - md.SIZE}
    for one in snapshot.regions:
        assert one.offset + one.size <= sizes[one.window]
    if scene.config.confined is not None:
        found = [(one.size, one.offset) for one in snapshot.regions]
        assert found in ([], [(SHARED, 0)])
        assert set(scene.shown.values()) <= {SHARED}
    for ring in snapshot.rings:
        if ring.runs:
            # The three areas of a split virtqueue, each in one region (VIRTIO).
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
@given(
    messages=st.lists(st.tuples(MESSAGES, PAUSES), max_size=25),
    started=st.booleans(),
    attach=st.booleans(),
    confined=st.booleans(),
)
def test_any_messages_are_taken_or_end_the_connection(
    messages: list[tuple[Sent, float]], *, started: bool, attach: bool, confined: bool
) -> None:
    with scene(attach=attach, confined=confined) as made, ram(made) as fd:
        files = Files(fd)
        memory = [(made.shared if confined else region(MEMORY), fd)]
        try:
            made.slave()
            begin = made.running if started else made.front_end
            qemu: FrontEnd = begin(memory)
            transport = qemu.transport
            assert isinstance(transport, ToDevice)
            for (request, flags, payload, kinds), pause in messages:
                fds = [files.fds[kind] for kind in kinds]
                header = bytes(vu.Header(request, flags | vu.VERSION, len(payload)))
                transport.send(header + payload, fds)
                transport.port.sent.clear()
                made.loop.advance(pause)
                check_published(made)
            made.settle()
            check_published(made)
        except (Dropped, Refused):
            made.device.master_gone()
            check_published(made)
        finally:
            files.close()


def write(region: mmap.mmap, at: int, entry: md.Agent | md.AgentRing) -> None:
    data = bytes(entry)
    region[at : at + len(data)] = data


def lying_agent(numbers: random.Random) -> md.Agent:
    """Return the entry of an agent that seems to live and to serve the device."""
    return md.Agent(
        instance=numbers.randrange(3),
        heartbeat=numbers.getrandbits(64),
        generation=numbers.choice([0, 2, 2**62, 2**64 - 1]),
        state=md.AgentState.READY,
        vectors=numbers.randrange(5),
    )


def lying_ring(numbers: random.Random) -> md.AgentRing:
    """Return the entry of a ring that has come to any index in any session."""
    return md.AgentRing(
        session=numbers.getrandbits(64),
        state=numbers.choice(list(md.AgentRingState)),
        index=numbers.getrandbits(32),
    )


def scribble(made: Scene, slave: RecordedSlave, seed: int) -> None:
    """Write into the metadata what a hostile slave may write, and ring the daemon."""
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
            if seed % 2:
                # Entries that are valid, but lie: the daemon then waits for an agent
                # that never answers, or takes any generation for an answer.
                write(region, md.AGENT, lying_agent(numbers))
                write(region, md.AGENT_RINGS, lying_ring(numbers))
    slave.ring(md.DAEMON_PEER, 0)


@fuzz
@given(st.lists(st.integers(0, 2**32), max_size=12))
def test_master_is_answered_in_time_whatever_the_slave_writes(
    seeds: list[int],
) -> None:
    with scene() as made:
        slave = made.slave()
        qemu = made.running()
        for turn, seed in enumerate(seeds):
            scribble(made, slave, seed)
            made.loop.advance(0.3)
            started = made.loop.now
            # The ring's own used index, which no slave's entry may replace.
            assert qemu.stop_ring(turn % 2) == 0
            # An agent that does not answer is given up after one second.
            assert made.loop.now - started < 1.1
            qemu.driver_ok([RingAt.nth(turn % 2)])
            made.settle()
        backend = made.device.backend
        assert backend is not None
        assert all(backend.setup.runs(index) for index in range(2))
