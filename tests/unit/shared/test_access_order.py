# SPDX-License-Identifier: Apache-2.0
"""The order of stores and loads in the metadata region, which the other side relies on.

Two processes share the region without a lock that both must take.  So these tests
look at the region between any two bytecode instructions of `access.py`: as a reader
would see it, or with the other side writing at just that moment.
"""

import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from tests.unit.shared.test_access import numbered, region
from tests.unit.shared.test_metadata import DEVICE, REGION, RING
from vhostpci_shared import access
from vhostpci_shared import metadata as md

AGENT_GENERATION = md.AGENT + 0x10
"""Where docs/metadata.md has the generation that the agent answers."""


@contextmanager
def between_instructions(look: Callable[[], None]) -> Iterator[None]:
    """Call `look` before each bytecode instruction that runs in `access.py`."""
    outer = sys.gettrace()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != access.__file__:
            return None
        frame.f_trace_opcodes = True
        sys.settrace(None)  # what `look` runs is not traced
        look()
        sys.settrace(trace)
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(outer)


def states(memory: bytearray, write: Callable[[], object]) -> list[bytes]:
    """Return the region before, after each instruction that changed it, and at last."""
    seen = [bytes(memory)]

    def look() -> None:
        if memory != seen[-1]:
            seen.append(bytes(memory))

    with between_instructions(look):
        write()
    look()
    return seen


def changed(before: bytes, after: bytes) -> set[int]:
    """Return the offsets of the 64-bit words that are not the same."""
    pairs = zip(memoryview(before).cast("Q"), memoryview(after).cast("Q"), strict=True)
    return {8 * number for number, (old, new) in enumerate(pairs) if old != new}


def word(state: bytes, offset: int) -> int:
    value: int = struct.unpack_from("<Q", state, offset)[0]
    return value


def full_agent(number: int) -> md.Agent:
    """Return an entry in which each word depends on `number`."""
    return md.Agent(
        instance=number,
        heartbeat=number,
        generation=number,
        state=md.AgentState(number % 3),
        vectors=number,
        binding=str(number) * 16,
        message=str(number) * 183,
        data_plane=str(number) * 16,
        offers=number,
    )


def test_generation_is_the_last_word_that_the_agent_writes_and_alone() -> None:
    with region() as (memory, metadata):
        metadata.write_agent(full_agent(1))
        *_, before, last = states(memory, lambda: metadata.write_agent(full_agent(2)))
    assert changed(before, last) == {AGENT_GENERATION}
    assert (word(before, AGENT_GENERATION), word(last, AGENT_GENERATION)) == (1, 2)


def test_agent_writes_each_word_of_its_entry_and_none_beyond() -> None:
    with region() as (memory, metadata):
        metadata.write_agent(full_agent(1))
        first, *_, last = states(memory, lambda: metadata.write_agent(full_agent(2)))
    assert changed(first, last) == set(range(md.AGENT, md.AGENT + 256, 8))


def test_generation_is_odd_from_before_the_first_store_to_after_the_last() -> None:
    with region() as (memory, metadata):
        metadata.format()
        old = metadata.publish(*numbered(1))
        seen = states(memory, lambda: metadata.publish(*numbered(2)))
    first, second, *_, before, last = seen
    assert changed(first, second) == {md.GENERATION_OFFSET}
    assert changed(before, last) == {md.GENERATION_OFFSET}
    generations = [word(state, md.GENERATION_OFFSET) for state in seen]
    assert generations[0] == old
    assert set(generations[1:-1]) == {old + 1}
    assert generations[-1] == old + 2
    body = {offset // 0x1000 for offset in changed(second, before)}
    assert body == {md.DEVICE // 0x1000, 1, 2, md.RINGS // 0x1000}


def test_region_that_is_formatted_again_is_odd_before_its_contents_go() -> None:
    with region() as (memory, metadata):
        metadata.format()
        old = metadata.publish(*numbered(1))
        seen = states(memory, metadata.format)
    assert changed(seen[0], seen[1]) == {md.GENERATION_OFFSET}
    assert {word(state, md.GENERATION_OFFSET) for state in seen[1:]} == {old + 1}
    assert not any(seen[-1][md.DEVICE : md.DAEMON_END])


def test_heartbeat_changes_one_word_in_one_store() -> None:
    with region() as (memory, metadata):
        metadata.format()
        seen = states(memory, metadata.beat)
    assert len(seen) == 2
    assert changed(*seen) == {md.HEARTBEAT_OFFSET}


def test_reader_between_any_two_stores_of_the_daemon_sees_nothing_or_all() -> None:
    with region() as (memory, writer):
        writer.format()
        first = writer.publish(*numbered(1))
        reader = access.Metadata(memoryview(memory))
        found: list[md.Snapshot | None] = []
        with between_instructions(lambda: found.append(reader.snapshot())):
            second = writer.publish(*numbered(2))
        found.append(reader.snapshot())
        reader.release()
    whole = {
        first: md.Snapshot(first, *counted(1)),
        second: md.Snapshot(second, *counted(2)),
    }
    assert None in found
    snapshots = [snapshot for snapshot in found if snapshot is not None]
    assert {snapshot.generation for snapshot in snapshots} == {first, second}
    assert all(snapshot == whole[snapshot.generation] for snapshot in snapshots)


def counted(
    number: int,
) -> tuple[md.Device, tuple[md.Region, ...], tuple[md.Ring, ...]]:
    """Return the contents `numbered` with the counts that `publish` fills in."""
    with region() as (_, metadata):
        metadata.format()
        metadata.publish(*numbered(number))
        snapshot = metadata.snapshot()
    assert snapshot is not None
    return snapshot.device, snapshot.regions, snapshot.rings


def test_daemon_that_writes_between_any_two_loads_never_tears_a_snapshot() -> None:
    """One publish at each place in turn where the reader can be interrupted."""
    for place in range(1000):
        with region() as (memory, writer):
            writer.format()
            reader = access.Metadata(memoryview(memory))
            interrupted = publish_at(place, writer, reader)
            reader.release()
        if not interrupted:
            break
    assert place > 20, "the snapshot was not interrupted"


def publish_at(place: int, writer: access.Metadata, reader: access.Metadata) -> bool:
    """Publish before instruction `place` of a snapshot; whether it has so many."""
    old, new = (RING,) * 4, (replace(RING, session=7),) * 4
    countdown = place

    def look() -> None:
        nonlocal countdown
        countdown -= 1
        if countdown == -1:
            writer.publish(DEVICE, (), new)

    writer.publish(DEVICE, (REGION,), old)
    before = writer.generation()
    with between_instructions(look):
        snapshot = reader.snapshot()
    assert snapshot is not None
    if snapshot.generation == before:
        assert (snapshot.regions, snapshot.rings) == ((REGION,), old)
    else:
        assert (snapshot.regions, snapshot.rings) == ((), new)
    return countdown < 0


class Barriers:
    """Notes each barrier in a list of what happened, and may do something in it."""

    def __init__(self, done: list[str], inside: Callable[[], object] | None = None):
        self._done = done
        self._inside = inside

    def _note(self, name: str) -> None:
        self._done.append(name)
        if self._inside is not None:
            self._inside()

    def barrier_acquire(self) -> None:
        self._note("acquire")

    def barrier_release(self) -> None:
        self._note("release")

    def barrier_full(self) -> None:
        self._note("full")


class Recorded(access.Metadata):
    """Metadata that notes each load and store, by its offset, among the barriers."""

    def __init__(self, memory: bytearray) -> None:
        self.done: list[str] = []
        super().__init__(memoryview(memory), Barriers(self.done))

    def _word(self, offset: int) -> int:
        self.done.append(f"load {offset:#x}")
        return super()._word(offset)

    def _set_word(self, offset: int, value: int) -> None:
        self.done.append(f"store {offset:#x}")
        super()._set_word(offset, value)

    def _write(self, offset: int, data: bytes) -> None:
        self.done.append(f"write {offset:#x}")
        super()._write(offset, data)

    def _read(self, offset: int, size: int) -> bytes:
        self.done.append(f"read {offset:#x}")
        return super()._read(offset, size)

    def taken(self) -> list[str]:
        """Return what was done since the last time."""
        taken = self.done[:]
        self.done.clear()
        return taken


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    metadata = Recorded(bytearray(md.SIZE))
    metadata.format()
    metadata.publish(*numbered(1))
    metadata.taken()
    yield metadata
    metadata.release()


def test_publish_has_a_barrier_behind_the_odd_and_before_the_even_generation(
    recorded: Recorded,
) -> None:
    recorded.publish(*numbered(2))
    assert recorded.taken() == [
        *("store 0x10", "release"),
        *("write 0x40", "write 0xa0", "write 0x1000", "write 0x3000"),
        *("release", "store 0x10"),
    ]


def test_format_has_a_barrier_behind_the_odd_generation(recorded: Recorded) -> None:
    recorded.format()
    assert recorded.taken() == ["store 0x10", "release", "write 0x40", "write 0x0"]


def test_snapshot_has_a_barrier_on_each_side_of_the_copy(recorded: Recorded) -> None:
    assert recorded.snapshot() is not None
    assert recorded.taken()[:5] == [
        *("load 0x10", "acquire", "read 0x0", "acquire", "load 0x10"),
    ]


def test_agent_has_a_barrier_before_its_generation(recorded: Recorded) -> None:
    recorded.write_agent_ring(1, md.AgentRing())
    recorded.write_agent(md.Agent())
    assert recorded.taken() == [
        *("write 0x9040", "write 0x8000", "write 0x8018"),
        *("release", "store 0x8010"),
    ]


def test_daemon_has_a_barrier_behind_its_copy_of_the_agents_entry() -> None:
    """What the agent writes while the daemon is in the barrier is not in the copy."""
    memory = bytearray(md.SIZE)
    agent = access.Metadata(memoryview(memory))
    done: list[str] = []
    inside = Barriers(done, lambda: agent.write_agent(full_agent(2)))
    daemon = access.Metadata(memoryview(memory), inside)
    agent.write_agent(full_agent(1))
    assert md.Agent.parse(daemon.agent_bytes()) == full_agent(1)
    assert md.Agent.parse(daemon.agent_bytes()) == full_agent(2)
    assert done == ["acquire", "acquire"]
    daemon.release()
    agent.release()


MARK = 0x1122334455667788
HEADER = md.Header(md.MAGIC, md.VERSION, md.SIZE, 0, 0)


@pytest.mark.parametrize(
    ("entry", "start", "word"),
    [
        (HEADER, md.HEADER, "generation"),
        (HEADER, md.HEADER, "heartbeat"),
        (RING, md.RINGS, "session"),
        (md.Agent(), md.AGENT, "heartbeat"),
        (md.Agent(), md.AGENT, "generation"),
        (md.AgentRing(), md.AGENT_RINGS, "session"),
    ],
)
def test_word_that_is_read_alone_is_aligned_in_each_entry(
    entry: Any, start: int, word: str
) -> None:
    data = bytes(replace(entry, **{word: MARK}))
    assert (start + data.index(struct.pack("<Q", MARK))) % 8 == 0
    assert len(data) % 8 == 0
