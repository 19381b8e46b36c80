# SPDX-License-Identifier: Apache-2.0
"""The metadata's entries: round trips, and any bytes from the other side."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_shared import metadata as md
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
    kick_vector=1,
    call_peer=2,
    call_vector=0,
)
ENTRIES: list[Any] = [
    md.Header(md.MAGIC, md.VERSION, md.SIZE, 4, 5),
    DEVICE,
    REGION,
    RING,
    md.Agent(instance=3, state=md.AgentState.FAILED, vectors=5, message="no TAP"),
    md.AgentRing(session=2**60, state=md.AgentRingState.BROKEN, index=7, packets=8),
]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: type(entry).__name__)
def test_entry_survives_the_way_through_bytes(entry: Any) -> None:
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


@given(st.binary(max_size=md.DAEMON_END))
def test_any_daemon_part_is_a_snapshot_or_refused(data: bytes) -> None:
    part = data.ljust(md.DAEMON_END, b"\xff")
    try:
        snapshot = md.Snapshot.parse(2, part)
    except ProtocolError:
        return
    assert len(snapshot.rings) == snapshot.device.ring_count


def test_foreign_region_is_told_by_its_magic() -> None:
    with pytest.raises(ProtocolError, match="no vhostpci metadata"):
        md.Header.parse(bytes(md.Header.layout.size))


def test_other_version_is_named_with_ours() -> None:
    header = md.Header(md.MAGIC, 2, md.SIZE, 0, 0)
    with pytest.raises(ProtocolError, match="metadata version 2, we know version 1"):
        md.Header.parse(bytes(header))


@pytest.mark.parametrize(
    "change",
    [
        {"region_count": md.MAX_REGIONS + 1},
        {"ring_count": md.MAX_RINGS + 2, "queue_pairs": md.MAX_RINGS // 2 + 1},
        {"ring_count": 3},
        {"vectors": 4},
    ],
    ids=str,
)
def test_device_whose_counts_do_not_fit_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ProtocolError):
        md.Device.parse(bytes(replace(DEVICE, **change)))  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["guest_addr", "offset"])
def test_region_that_wraps_is_refused(field: str) -> None:
    fits = replace(REGION, **{field: 2**64 - REGION.size})
    assert md.Region.parse(bytes(fits)) == fits
    wraps = replace(REGION, **{field: 2**64 - REGION.size + 1})
    with pytest.raises(ProtocolError, match="wraps"):
        md.Region.parse(bytes(wraps))


@pytest.mark.parametrize("size", [0, md.MAX_RING_SIZE + 1])
def test_started_ring_of_an_impossible_size_is_refused(size: int) -> None:
    with pytest.raises(ProtocolError, match="ring size"):
        md.Ring.parse(bytes(replace(RING, size=size)))


def test_ring_runs_only_if_started_and_enabled() -> None:
    for flag in (md.RingFlag(0), md.RingFlag.STARTED, md.RingFlag.ENABLED):
        assert not replace(RING, flags=flag).runs
    assert RING.runs


def test_text_that_is_too_long_is_cut_between_characters() -> None:
    agent = md.Agent(binding="äöüäöüäöü", message="x" * 500)
    parsed = md.Agent.parse(bytes(agent))
    assert parsed.binding == "äöüäöüäö"
    assert parsed.message == "x" * 208


def test_text_of_the_slave_cannot_write_to_our_terminal() -> None:
    raw = bytearray(bytes(md.Agent(message="\x1b[2Jgone\nE fake")))
    assert "\x1b" not in md.Agent.parse(bytes(raw)).message
    assert "\n" not in md.Agent.parse(bytes(raw)).message
