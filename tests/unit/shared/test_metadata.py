# SPDX-License-Identifier: Apache-2.0
"""The metadata's entries: to bytes and back, their bounds, and arbitrary bytes."""

from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_shared import metadata as md
from vhostpci_shared.position import Position
from vhostpci_shared.wire import ProtocolError

DEVICE = md.Device(
    instance=1,
    features=2**63,
    flags=md.DeviceFlag.MASTER,
    queue_pairs=2,
    vectors=5,
    daemon_peer=1,
    mtu=1500,
    region_count=1,
    ring_count=4,
    name="web",
)
REGION = md.Region(0x1000, 0x2000, 0, 0x3000)
RING = md.Ring(
    session=2**60,
    flags=md.RingFlag.STARTED | md.RingFlag.ENABLED,
    size=256,
    desc=0x1000,
    driver=0x2000,
    device=0x3000,
    base=65535,
    origin=2**59,
    kick_vector=1,
    call_peer=2,
    call_vector=0,
)
ENTRIES: list[Any] = [
    md.Header(md.MAGIC, md.VERSION, md.SIZE, 4, 5),
    DEVICE,
    REGION,
    RING,
    md.Agent(
        instance=3,
        state=md.AgentState.FAILED,
        vectors=5,
        flags=md.AgentFlag.USO | md.AgentFlag.OFFERS,
        message="no TAP",
        data_plane="vhost-user",
        offers=2**63 | 1,
    ),
    md.AgentRing(session=2**60, state=md.AgentRingState.BROKEN, index=7, packets=8),
    Position(origin=2**60, desc=4096, size=256, at=0x80FF, next=1, undo=2**32),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: type(entry).__name__)
def test_entry_is_the_same_after_its_way_through_bytes(entry: Any) -> None:
    assert len(bytes(entry)) == entry.layout.size
    assert type(entry).parse(bytes(entry)) == entry


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: type(entry).__name__)
@given(data=st.data())
def test_any_bytes_are_an_entry_or_refused(entry: Any, data: st.DataObject) -> None:
    size = entry.layout.size
    raw = data.draw(
        st.binary(max_size=size + 1) | st.binary(min_size=size, max_size=size)
    )
    try:
        parsed = type(entry).parse(raw)
    except ProtocolError:
        return
    assert type(entry).parse(bytes(parsed)) == parsed


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: type(entry).__name__)
@given(at=st.integers(0, 255), value=st.integers(0, 255))
def test_any_changed_byte_is_an_entry_or_refused(
    entry: Any, at: int, value: int
) -> None:
    raw = bytearray(bytes(entry))
    raw[at % len(raw)] = value
    try:
        parsed = type(entry).parse(bytes(raw))
    except ProtocolError:
        return
    assert type(entry).parse(bytes(parsed)) == parsed


COUNTS = st.sampled_from([0, 1, 2, 4, 32, 64, 66, 256, 257, 300, 0xFFFF])


@given(pairs=COUNTS, rings=COUNTS, regions=COUNTS, junk=st.binary(max_size=64))
def test_any_daemon_part_is_a_snapshot_or_refused(
    pairs: int, rings: int, regions: int, junk: bytes
) -> None:
    """All entries are valid, but for some bytes; the counts are what they are."""
    counts = {"queue_pairs": pairs, "ring_count": rings, "region_count": regions}
    device = bytes(replace(DEVICE, **counts, vectors=0xFFFF))  # type: ignore[arg-type]
    part = bytearray(md.DAEMON_END)
    part[md.DEVICE : md.DEVICE + len(device)] = device
    part[md.REGIONS : md.RINGS] = bytes(REGION) * 256
    part[md.RINGS : md.DAEMON_END] = bytes(RING) * 64
    part[md.RINGS : md.RINGS + len(junk)] = junk
    try:
        snapshot = md.Snapshot.parse(2, bytes(part))
    except ProtocolError:
        return
    assert len(snapshot.rings) == rings <= 64
    assert len(snapshot.regions) == regions <= 256


@pytest.mark.parametrize("magic", [bytes(8), b"VHOSTPCJ", b"vHOSTPCI"])
def test_memory_with_another_magic_is_no_metadata(magic: bytes) -> None:
    header = md.Header(magic, md.VERSION, md.SIZE, 0, 0)
    with pytest.raises(ProtocolError, match="no vhostpci metadata"):
        md.Header.parse(bytes(header))


@pytest.mark.parametrize(
    ("version", "older"),
    [(0, "vhostpci-host on the"), (2, "vhostpci-guest in"), (2**32 - 1, "vhostpci-g")],
)
def test_other_version_says_which_side_to_update(version: int, older: str) -> None:
    header = md.Header(md.MAGIC, version, md.SIZE, 0, 0)
    expected = f"version is {version}, the agent knows version 1: update {older}"
    with pytest.raises(md.OtherVersion, match=expected) as why:
        md.Header.parse(bytes(header))
    # What the agent writes for the daemon has to fit.
    assert len(str(why.value).encode()) <= 183


@pytest.mark.parametrize("length", [0, md.SIZE - 1, md.SIZE + 1])
def test_other_length_is_refused(length: int) -> None:
    header = md.Header(md.MAGIC, md.VERSION, length, 0, 0)
    with pytest.raises(ProtocolError, match=f"metadata length {length:#x}"):
        md.Header.parse(bytes(header))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"region_count": 257}, "counts 257 regions"),
        ({"ring_count": 66, "queue_pairs": 33, "vectors": 67}, "and 66 rings"),
        ({"ring_count": 3}, "3 rings of 2 queue pairs"),
        ({"ring_count": 2}, "2 rings of 2 queue pairs"),
        ({"ring_count": 4, "queue_pairs": 1}, "4 rings of 1 queue pairs"),
        ({"vectors": 4}, "4 vectors for 4 rings"),
    ],
    ids=str,
)
def test_device_whose_counts_do_not_fit_is_refused(
    change: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ProtocolError, match=complaint):
        md.Device.parse(bytes(replace(DEVICE, **change)))


def test_device_may_have_as_many_entries_as_the_tables() -> None:
    most = replace(DEVICE, region_count=256, ring_count=64, queue_pairs=32, vectors=65)
    assert md.Device.parse(bytes(most)) == most


@pytest.mark.parametrize("field", ["guest_addr", "offset"])
def test_region_that_wraps_is_refused(field: str) -> None:
    fits = replace(REGION, **{field: 2**64 - REGION.size})
    assert md.Region.parse(bytes(fits)) == fits
    wraps = replace(REGION, **{field: 2**64 - REGION.size + 1})
    with pytest.raises(ProtocolError, match="wraps"):
        md.Region.parse(bytes(wraps))


def test_empty_region_is_refused() -> None:
    with pytest.raises(ProtocolError, match="empty"):
        md.Region.parse(bytes(replace(REGION, size=0)))


@pytest.mark.parametrize("size", [0, 32769])
def test_started_ring_has_a_size_from_1_to_32768(size: int) -> None:
    largest = replace(RING, size=32768)
    assert md.Ring.parse(bytes(largest)) == largest
    with pytest.raises(ProtocolError, match="ring size"):
        md.Ring.parse(bytes(replace(RING, size=size)))


def test_ring_that_is_not_started_needs_no_size() -> None:
    ring = replace(RING, flags=md.RingFlag.ENABLED, size=0)
    assert md.Ring.parse(bytes(ring)) == ring


def test_flags_of_a_later_version_are_ignored() -> None:
    """Bits 0 to 5 of a ring's flags, and 0 to 2 of the device's, are version 1's."""
    every = 2**32 - 1
    ring = replace(RING, flags=cast(md.RingFlag, every))
    assert int(md.Ring.parse(bytes(ring)).flags) == 0b111111
    device = replace(DEVICE, flags=cast(md.DeviceFlag, every))
    assert int(md.Device.parse(bytes(device)).flags) == 0b111


def test_ring_runs_only_if_started_and_enabled() -> None:
    for flag in (md.RingFlag(0), md.RingFlag.STARTED, md.RingFlag.ENABLED):
        assert not replace(RING, flags=flag).runs
    assert RING.runs


def test_flags_of_a_later_agent_are_left_out() -> None:
    agent = md.Agent(flags=cast(md.AgentFlag, 0xFFFF))
    assert int(md.Agent.parse(bytes(agent)).flags) == 3


def test_text_that_is_too_long_is_cut_between_characters() -> None:
    agent = md.Agent(binding="xäöüäöüäöü", message="x" * 500)
    parsed = md.Agent.parse(bytes(agent))
    assert parsed.binding == "xäöüäöüä"  # 15 bytes: the next character has two
    # An earlier reader goes on until the first NUL, or 208 bytes.
    assert parsed.message == "x" * 183


def test_text_ends_at_its_first_nul() -> None:
    assert md.Agent.parse(bytes(md.Agent(message="all\0hidden"))).message == "all"


def test_state_that_version_1_does_not_have_is_refused_with_those_it_has() -> None:
    agent = md.Agent(state=cast(md.AgentState, 5))
    with pytest.raises(
        ProtocolError, match=r"AgentState 5 .*: 0 NONE, 1 READY, 2 FAIL.*4 MISMATCH"
    ):
        md.Agent.parse(bytes(agent))


def test_text_of_the_slave_has_no_escape_sequences_or_line_ends() -> None:
    raw = bytearray(bytes(md.Agent(message="\x1b[2Jgone\nE fake")))
    assert "\x1b" not in md.Agent.parse(bytes(raw)).message
    assert "\n" not in md.Agent.parse(bytes(raw)).message
