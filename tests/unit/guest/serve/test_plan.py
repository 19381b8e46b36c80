# SPDX-License-Identifier: Apache-2.0
"""What a change of the metadata asks of us: tables of before, after, and the steps."""

import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.bar import FEATURES, MEMORY, RUNS, SIZE, ring
from vhostpci_guest.errors import Unusable
from vhostpci_guest.interfaces import Window, WindowFile
from vhostpci_guest.serve.plan import (
    NOTHING,
    Plan,
    Run,
    Want,
    base,
    check,
    goes_on,
    inherited,
    place,
    plan,
)
from vhostpci_shared import metadata as md
from vhostpci_shared.metadata import AgentRingState, DeviceFlag, RingFlag
from vhostpci_shared.wire import ProtocolError

WINDOW = Window(0, 0x7000_0000_0000, memoryview(bytearray(SIZE)), "fake")
RUNNING = AgentRingState.RUNNING


def want(*rings: md.Ring, features: int = FEATURES, memory: int = 0) -> Want:
    return Want(
        features=features,
        queue_pairs=1,
        memory=check(snapshot(), {0: WINDOW}, 3).memory[memory:],
        rings=rings,
    )


def running(wanted: md.Ring) -> Run:
    return Run(session=wanted.session, state=RUNNING, place=place(wanted))


def snapshot(
    *rings: md.Ring,
    regions: tuple[md.Region, ...] = (MEMORY,),
    vectors: int = 3,
) -> md.Snapshot:
    rings = rings or (ring(session=1), ring(1, session=1))
    device = md.Device(
        instance=1,
        features=FEATURES,
        flags=DeviceFlag.MASTER,
        queue_pairs=1,
        vectors=vectors,
        daemon_peer=1,
        mtu=0,
        region_count=len(regions),
        ring_count=len(rings),
        name="net0",
    )
    return md.Snapshot(2, device, regions, rings)


RX, TX = ring(session=1), ring(1, session=1)
OFF = replace(RX, flags=RingFlag(0))
CHANGES: dict[str, dict[str, Any]] = {
    "size": {"size": 128},
    "descriptor table": {"desc": 0x90000},
    "driver area": {"driver": 0x90000},
    "call vector": {"call_vector": 5},
    "kick vector": {"kick_vector": 2},
    "wish for calls": {"flags": RUNS & ~RingFlag.CALL},
    "wish to be polled": {"flags": RUNS | RingFlag.POLL},
}


@pytest.mark.parametrize(
    ("now", "new", "runs", "steps"),
    [
        pytest.param(
            NOTHING, want(RX, TX), {}, Plan((), True, (0, 1)), id="all is new"
        ),
        pytest.param(
            want(RX, TX),
            want(RX, TX),
            {0: running(RX), 1: running(TX)},
            Plan((), False, ()),
            id="nothing changes",
        ),
        pytest.param(
            want(RX, TX),
            want(OFF, TX),
            {0: running(RX), 1: running(TX)},
            Plan((0,), False, ()),
            id="one ring is taken back, and the other goes on",
        ),
        pytest.param(
            want(RX),
            want(replace(RX, flags=RingFlag.STARTED)),
            {0: running(RX)},
            Plan((0,), False, ()),
            id="a ring is disabled",
        ),
        pytest.param(
            want(RX),
            want(replace(RX, session=2)),
            {0: running(RX)},
            Plan((0,), False, (0,)),
            id="a new session",
        ),
        pytest.param(
            want(RX),
            want(replace(RX, device=0x90000)),
            {0: running(RX)},
            Plan((0,), False, (0,)),
            id="another place",
        ),
        pytest.param(
            want(RX),
            want(replace(RX, call_peer=3)),
            {0: running(RX)},
            Plan((0,), False, (0,)),
            id="another peer to call",
        ),
        *(
            pytest.param(
                want(RX),
                want(replace(RX, **change)),
                {0: running(RX)},
                Plan((0,), False, (0,)),
                id=f"another {name}",
            )
            for name, change in CHANGES.items()
        ),
        pytest.param(
            want(RX),
            want(replace(RX, base=7)),
            {0: running(RX)},
            Plan((), False, ()),
            id="another base in the same session says nothing",
        ),
        pytest.param(
            want(RX, TX),
            want(RX, TX, memory=1),
            {0: running(RX), 1: running(TX)},
            Plan((0, 1), True, (0, 1)),
            id="the memory changes under running rings",
        ),
        pytest.param(
            want(RX),
            want(RX, features=0),
            {0: running(RX)},
            Plan((0,), False, (0,)),
            id="the features change",
        ),
        pytest.param(
            want(RX, TX),
            replace(want(RX, TX), queue_pairs=2),
            {0: running(RX), 1: running(TX)},
            Plan((0, 1), False, (0, 1)),
            id="the queue pairs change",
        ),
        pytest.param(
            want(RX, TX),
            NOTHING,
            {0: running(RX), 1: running(TX)},
            Plan((0, 1), True, ()),
            id="nothing is wanted any more",
        ),
        pytest.param(
            want(RX),
            want(RX),
            {0: Run(session=1, state=AgentRingState.FENCED)},
            Plan((), False, ()),
            id="a fence holds for its session",
        ),
        pytest.param(
            want(RX),
            want(RX),
            {0: Run(session=1, state=AgentRingState.BROKEN)},
            Plan((), False, ()),
            id="a broken ring waits for a new session",
        ),
        pytest.param(
            want(RX),
            want(replace(RX, session=2)),
            {0: Run(session=1, state=AgentRingState.FENCED)},
            Plan((), False, (0,)),
            id="a new session takes the fence down",
        ),
        pytest.param(
            want(RX),
            want(RX),
            {0: Run(session=1, state=AgentRingState.STOPPED)},
            Plan((), False, (0,)),
            id="a ring that stopped goes on in the same session",
        ),
    ],
)
def test_plan_has_the_expected_steps(
    now: Want, new: Want, runs: dict[int, Run], steps: Plan
) -> None:
    assert plan(now, new, runs) == steps


def test_new_session_starts_at_its_base() -> None:
    stopped = Run(session=1, state=AgentRingState.STOPPED, index=9)
    assert base(ring(session=2, base=5), stopped) == 5


def test_new_session_that_resumes_starts_where_the_ring_says() -> None:
    stopped = Run(session=1, state=AgentRingState.STOPPED, index=9)
    renewed = replace(ring(session=2), flags=RUNS | RingFlag.RESUME)
    assert base(renewed, stopped) is None


def test_same_session_goes_on_where_it_stopped() -> None:
    stopped = Run(session=1, state=AgentRingState.STOPPED, index=9)
    assert base(ring(session=1, base=5), stopped) == 9


def test_ring_of_an_agent_that_died_starts_where_the_ring_says() -> None:
    run = inherited(md.AgentRing(session=1, state=RUNNING, index=9))
    assert run is not None
    assert run.state is AgentRingState.STOPPED
    assert base(ring(session=1, base=5), run) is None


def test_ring_that_an_earlier_agent_fenced_stays_fenced() -> None:
    run = inherited(md.AgentRing(session=1, state=AgentRingState.FENCED))
    assert run is not None
    assert plan(want(RX), want(RX), {0: run}).start == ()


def test_memory_is_where_the_window_is() -> None:
    regions = (md.Region(0x1000, 0x2000, 0, 0x5000),)
    (piece,) = check(snapshot(regions=regions), {0: WINDOW}, 3).memory
    assert piece.guest_addr == 0x1000
    assert piece.size == 0x2000
    assert piece.host_addr == WINDOW.address + 0x5000


ROOM = SIZE - md.SIZE


@pytest.mark.parametrize(
    "region",
    [
        pytest.param(md.Region(0, ROOM + 1, 0, 0), id="reaches into the metadata"),
        pytest.param(md.Region(0, 1, 0, ROOM), id="lies in the metadata"),
        pytest.param(md.Region(0, 1, 0, SIZE), id="begins past the window"),
        pytest.param(md.Region(0, 2**63, 0, 2**63), id="ends at 2^64"),
        pytest.param(md.Region(0, 1, 255, 0), id="is in a window that no daemon has"),
        pytest.param(md.Region(0, 1, 65536, 0), id="is in a window past the last"),
    ],
)
def test_region_outside_the_windows_memory_is_refused(region: md.Region) -> None:
    with pytest.raises(ProtocolError):
        check(snapshot(regions=(region,)), {0: WINDOW}, 3)


OTHER = Window(4711, 0x6000_0000_0000, memoryview(bytearray(SIZE)), "fake")


def test_other_windows_may_be_used_to_their_end() -> None:
    regions = (md.Region(0, SIZE, OTHER.id, 0),)
    (piece,) = check(snapshot(regions=regions), {0: WINDOW, OTHER.id: OTHER}, 3).memory
    assert (piece.host_addr, piece.size) == (OTHER.address, SIZE)


def test_nothing_past_the_end_of_another_window_is_used() -> None:
    regions = (md.Region(0, SIZE, OTHER.id, 1),)
    with pytest.raises(ProtocolError, match="does not fit window 4711"):
        check(snapshot(regions=regions), {0: WINDOW, OTHER.id: OTHER}, 3)


def test_region_is_in_its_windows_file_behind_where_the_window_begins() -> None:
    file = WindowFile(7, offset=0x10000)
    regions = (md.Region(0, 0x1000, 0, 0x4000),)
    window = replace(WINDOW, file=file)
    (piece,) = check(snapshot(regions=regions), {0: window}, 3).memory
    assert (piece.file, piece.offset) == (file, 0x14000)


def test_region_of_a_window_without_a_file_says_why() -> None:
    window = replace(WINDOW, no_file="lockdown")
    (piece,) = check(snapshot(), {0: window}, 3).memory
    assert (piece.file, piece.offset, piece.no_file) == (None, 0, "lockdown")


def test_window_that_is_mapped_again_is_other_memory() -> None:
    # At the same address, and even with the same number of a descriptor.
    first, second = (
        Want(memory=check(snapshot(), {0: window}, 3).memory, rings=(RX,))
        for window in (replace(WINDOW, file=WindowFile(7)) for _ in range(2))
    )
    assert plan(first, second, {0: running(RX)}) == Plan((0,), True, (0,))


def test_memory_and_rings_wait_for_windows_that_are_not_there() -> None:
    regions = (MEMORY, md.Region(1 << 32, 8, 4711, 0), md.Region(1 << 33, 8, 4712, 0))
    wanted = check(snapshot(regions=regions), {0: WINDOW, OTHER.id: OTHER}, 3)
    assert wanted.absent == (4712,)
    assert wanted.memory == ()
    assert wanted.rings == ()
    assert wanted.master


def test_regions_that_overlap_are_refused() -> None:
    regions = (md.Region(0x2000, 0x1000, 0, 0), md.Region(0x1000, 0x1001, 0, 0x8000))
    with pytest.raises(ProtocolError, match="overlap"):
        check(snapshot(regions=regions), {0: WINDOW}, 3)


def test_regions_that_overlap_are_refused_wherever_they_are_in_the_table() -> None:
    between = md.Region(0x9000, 0x1000, 0, 0)
    regions = (
        md.Region(0x1000, 0x1001, 0, 0),
        between,
        md.Region(0x2000, 0x1000, 0, 0x8000),
    )
    with pytest.raises(ProtocolError, match="overlap"):
        check(snapshot(regions=regions), {0: WINDOW}, 3)


def test_regions_may_be_in_any_order() -> None:
    regions = (md.Region(0x2000, 0x1000, 0, 0), md.Region(0x1000, 0x1000, 0, 0x8000))
    assert len(check(snapshot(regions=regions), {0: WINDOW}, 3).memory) == 2


def test_regions_may_touch() -> None:
    regions = (md.Region(0x1000, 0x1000, 0, 0), md.Region(0x2000, 0x1000, 0, 0x8000))
    assert len(check(snapshot(regions=regions), {0: WINDOW}, 3).memory) == 2


@pytest.mark.parametrize("number", [md.FIRST_WINDOW, md.LAST_WINDOW])
def test_first_and_last_window_id_are_allowed(number: int) -> None:
    regions = (md.Region(0, 1, number, 0),)
    assert check(snapshot(regions=regions), {0: WINDOW}, 3).absent == (number,)


def test_error_of_too_few_vectors_has_the_number_that_is_needed() -> None:
    with pytest.raises(Unusable, match=r"has 2 MSI-X.*vectors=3"):
        check(snapshot(), {0: WINDOW}, 2)


def test_kick_on_a_vector_that_is_not_there_is_refused() -> None:
    rings = (replace(RX, kick_vector=3), TX)
    with pytest.raises(ProtocolError, match="kicks vector 3"):
        check(snapshot(*rings), {0: WINDOW}, 3)


_counts = st.tuples(st.integers(0, 3), st.integers(0, 3))


@given(st.binary(max_size=96), st.binary(max_size=96), st.binary(max_size=192), _counts)
def test_any_bytes_are_a_plan_or_refused(
    device: bytes, regions: bytes, rings: bytes, counts: tuple[int, int]
) -> None:
    data = bytearray(md.DAEMON_END)
    data[md.DEVICE : md.DEVICE + len(device)] = device
    data[md.REGIONS : md.REGIONS + len(regions)] = regions
    data[md.RINGS : md.RINGS + len(rings)] = rings
    few, pairs = counts  # else nearly all have too many
    struct.pack_into("<HH", data, md.DEVICE + 0x14, pairs, 1 + 2 * pairs)
    struct.pack_into("<HH", data, md.DEVICE + 0x1C, few, 2 * pairs)
    try:
        wanted = check(md.Snapshot.parse(2, bytes(data)), {0: WINDOW}, 7)
    except (ProtocolError, Unusable):
        return
    for piece in wanted.memory:
        start = piece.host_addr - WINDOW.address
        assert 0 <= start < start + piece.size <= ROOM


_word = st.integers(0, 2**64 - 1) | st.integers(0, SIZE)


_number = st.sampled_from([0, OTHER.id, 4712])


@given(st.lists(st.builds(md.Region, _word, _word, _number, _word)))
def test_no_region_ever_leaves_its_window(regions: list[md.Region]) -> None:
    try:
        here = {0: WINDOW, OTHER.id: OTHER}
        wanted = check(snapshot(regions=tuple(regions)), here, 3)
    except ProtocolError:
        return
    for piece in wanted.memory:
        window, room = (
            (WINDOW, ROOM) if piece.host_addr >= WINDOW.address else (OTHER, SIZE)
        )
        start = piece.host_addr - window.address
        assert 0 <= start <= start + piece.size <= room


BEFORE = Run(
    session=1,
    state=AgentRingState.STOPPED,
    place=place(ring(session=1)),
    index=7,
    features=3,
)


@pytest.mark.parametrize(
    ("entry", "run", "start", "features", "expected"),
    [
        (ring(session=2), BEFORE, 7, 3, True),
        (ring(session=2), replace(BEFORE, index=0), 0, 3, True),
        (ring(session=2), BEFORE, 0, 3, False),
        (replace(ring(session=2), flags=RUNS | RingFlag.RESUME), BEFORE, 9, 3, False),
        (ring(session=2), BEFORE, 7, 2, False),
        (ring(session=2, size=128), BEFORE, 7, 3, False),
        (replace(ring(session=2), desc=0x40000), BEFORE, 7, 3, False),
        (ring(session=2), replace(BEFORE, index_known=False), 7, 3, False),
        (ring(session=2), None, 7, 3, False),
    ],
    ids=[
        *("where it stopped", "stopped at 0", "loaded again"),
        "moved by another agent",
        *("other features", "other size", "other place", "of another agent", "first"),
    ],
)
def test_driver_goes_on_where_its_ring_was(
    entry: md.Ring, run: Run | None, start: int, features: int, expected: bool
) -> None:
    assert goes_on(entry, run, start, features) is expected
