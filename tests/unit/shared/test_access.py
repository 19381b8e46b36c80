# SPDX-License-Identifier: Apache-2.0
"""The metadata region in memory: what one side writes, the other side reads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.shared.test_metadata import DEVICE, REGION, RING
from vhostpci_shared import access
from vhostpci_shared import metadata as md
from vhostpci_shared.wire import ProtocolError


@contextmanager
def region(fill: int = 0) -> Iterator[tuple[bytearray, access.Metadata]]:
    memory = bytearray([fill]) * md.SIZE
    metadata = access.Metadata(memoryview(memory))
    try:
        yield memory, metadata
    finally:
        metadata.release()


def numbered(
    number: int,
) -> tuple[md.Device, tuple[md.Region, ...], tuple[md.Ring, ...]]:
    """Return contents in which every part carries `number`."""
    device = md.Device(
        instance=number,
        features=number,
        flags=md.DeviceFlag.MASTER,
        queue_pairs=32,
        vectors=65,
        daemon_peer=1,
        mtu=1500,
        region_count=0,
        ring_count=0,
        name=str(number),
    )
    ring = md.Ring(
        session=number,
        flags=md.RingFlag.STARTED,
        size=256,
        desc=number,
        driver=number,
        device=number,
        base=number % 2**16,
        kick_vector=1,
        call_peer=2,
        call_vector=0,
    )
    return device, (md.Region(number, 1, 0, number),) * 256, (ring,) * 64


def test_what_is_published_is_read() -> None:
    with region() as (_, metadata):
        metadata.format()
        generation = metadata.publish(DEVICE, (REGION,), (RING,) * 4)
        snapshot = metadata.snapshot()
    assert snapshot == md.Snapshot(generation, DEVICE, (REGION,), (RING,) * 4)


def test_confined_device_says_how_much_of_the_memory_is_shared() -> None:
    confined = md.Confined(shared=80 << 20, memory=1 << 30)
    with region() as (_, metadata):
        metadata.format()
        metadata.publish(DEVICE, (), (RING,) * 4, confined)
        snapshot = metadata.snapshot()
        assert snapshot is not None
        assert snapshot.confined == confined
        metadata.publish(DEVICE, (), (RING,) * 4)
        snapshot = metadata.snapshot()
    assert snapshot is not None
    assert snapshot.confined == md.NOT_CONFINED


def test_formatted_region_cannot_be_read_before_it_is_published() -> None:
    with region() as (_, metadata):
        metadata.format()
        assert metadata.generation() % 2
        assert metadata.snapshot() is None


@given(st.integers(0, 255))
def test_generation_goes_on_from_what_an_earlier_daemon_wrote(fill: int) -> None:
    with region(fill) as (_, metadata):
        before = metadata.generation() % 2**62
        metadata.format()
        after = metadata.publish(DEVICE, (), (RING,) * 4)
    assert after > before
    assert after % 2 == 0


def test_daemon_does_not_read_back_what_the_slave_wrote() -> None:
    with region() as (memory, metadata):
        metadata.format()
        first = metadata.publish(DEVICE, (REGION,), (RING,) * 4)
        memory[:] = b"\xff" * len(memory)
        second = metadata.publish(DEVICE, (REGION,), (RING,) * 4)
    assert second == first + 2


def test_region_that_the_slave_overwrote_is_formatted_with_the_next_generation() -> (
    None
):
    with region() as (memory, metadata):
        metadata.format()
        first = metadata.publish(DEVICE, (REGION,), (RING,) * 4)
        memory[:] = bytes(len(memory))
        assert not metadata.formatted()
        metadata.format()
        assert metadata.formatted()
        assert metadata.generation() == first + 1
        assert metadata.publish(DEVICE, (REGION,), (RING,) * 4) == first + 2


def test_header_is_checked_whenever_the_rest_is_read() -> None:
    with region() as (memory, metadata):
        metadata.format()
        metadata.publish(DEVICE, (REGION,), (RING,) * 4)
        memory[0] ^= 1
        with pytest.raises(ProtocolError, match="no vhostpci metadata"):
            metadata.snapshot()


def test_heartbeat_wraps_and_does_not_stop() -> None:
    with region(0xFF) as (_, metadata):
        metadata.beat()
        assert metadata.heartbeat() == 0
        metadata.beat()
        assert metadata.heartbeat() == 1


ENTRIES = (md.HEADER, md.DEVICE, md.REGIONS, md.RINGS, md.AGENT, md.AGENT_RINGS)


@given(
    st.binary(max_size=64),
    # Most bytes of the region have no name: look above all at those that have one.
    st.sampled_from([entry + at for entry in ENTRIES for at in range(0, 64, 8)])
    | st.integers(0, md.SIZE - 64),
)
def test_any_bytes_in_the_region_are_read_or_refused(data: bytes, at: int) -> None:
    with region() as (memory, metadata):
        metadata.format()
        metadata.publish(DEVICE, (REGION,), (RING,) * 4)
        memory[at : at + len(data)] = data
        for read in (
            metadata.header,
            metadata.snapshot,
            lambda: md.Agent.parse(metadata.agent_bytes()),
            lambda: [metadata.agent_ring(i) for i in range(md.MAX_RINGS)],
        ):
            try:
                read()
            except ProtocolError:
                continue


def test_agent_writes_where_the_daemon_reads() -> None:
    agent = md.Agent(
        instance=5,
        heartbeat=6,
        generation=8,
        state=md.AgentState.READY,
        vectors=3,
        binding="vfio",
    )
    ring = md.AgentRing(session=9, state=md.AgentRingState.RUNNING, index=10)
    with region() as (memory, metadata):
        daemon_part = bytes(memory[: md.DAEMON_END])
        metadata.write_agent(agent)
        metadata.write_agent_ring(63, ring)
        assert md.Agent.parse(metadata.agent_bytes()) == agent
        assert metadata.agent_ring(63) == ring
        assert memory[: md.DAEMON_END] == daemon_part


class Interrupted(access.Metadata):
    """The other side publishes in the middle of our first copy."""

    writer: access.Metadata | None = None

    def _read(self, offset: int, size: int) -> bytes:
        writer, self.writer = self.writer, None
        half = size // 4
        first = super()._read(offset, half)
        if writer is not None:
            writer.publish(*numbered(2))
        return first + super()._read(offset + half, size - half)


def test_torn_copy_is_thrown_away_and_copied_again() -> None:
    with region() as (memory, writer):
        writer.format()
        writer.publish(*numbered(1))
        reader = Interrupted(memoryview(memory))
        reader.writer = writer
        snapshot = reader.snapshot()
        reader.release()
    assert snapshot is not None
    assert snapshot.device.name == "2"
    assert {ring.session for ring in snapshot.rings} == {2}


def test_reader_gives_up_while_the_writer_does_not_finish() -> None:
    with region() as (_, metadata):
        metadata.format()
        metadata.publish(*numbered(1))
        metadata._set_word(md.GENERATION_OFFSET, metadata.generation() + 1)
        assert metadata.snapshot() is None


def test_concurrent_writer_never_shows_half_of_two_generations() -> None:
    """Each snapshot is of one number throughout, and numbers never go back."""
    with region() as (_, metadata):
        metadata.format()
        contents = [numbered(number) for number in range(1, 9)]
        metadata.publish(*contents[0])
        over = threading.Event()

        def write() -> None:
            for turn in range(600):
                metadata.publish(*contents[turn % len(contents)])
            over.set()

        writer = threading.Thread(target=write)
        writer.start()
        seen: list[int] = []
        while not over.is_set() or not seen:
            snapshot = metadata.snapshot()
            if snapshot is None:
                continue
            seen.append(snapshot.generation)
            number = snapshot.device.instance
            assert snapshot.device.name == str(number)
            assert {r.offset for r in snapshot.regions} == {number}
            assert {(r.session, r.device) for r in snapshot.rings} == {(number, number)}
        writer.join()
    assert seen == sorted(seen)


@pytest.mark.parametrize("size", [0, md.SIZE - 1, md.SIZE + 8])
def test_view_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="metadata region"):
        access.Metadata(memoryview(bytearray(size)))


def test_metadata_is_at_the_end_of_the_window() -> None:
    window = memoryview(bytearray(3 * md.SIZE))
    window[2 * md.SIZE] = 7
    assert access.find(window)[0] == 7
    assert len(access.find(window)) == md.SIZE
    assert len(access.find(window[: md.SIZE])) == md.SIZE


def test_window_that_is_too_small_is_refused() -> None:
    with pytest.raises(ProtocolError, match="smaller than the metadata"):
        access.find(memoryview(bytearray(md.SIZE - 1)))
