# SPDX-License-Identifier: Apache-2.0
"""The memory map: it translates ranges of addresses from one kind to another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_host.memory.regions import MemoryMap, OutsideMemory, PlacedRegion
from vhostpci_shared import metadata as md
from vhostpci_shared.vhost_user import MemRegion
from vhostpci_shared.wire import ProtocolError

LOW = PlacedRegion(MemRegion(0, 0xA0000, 0x7000_0000, 0), window=0, offset=0)
HIGH = PlacedRegion(MemRegion(0xC0000, 0x40000, 0x700C_0000, 0xC0000), 0, 0xC0000)
MAP = MemoryMap().add(LOW).add(HIGH)


def test_user_address_becomes_a_guest_address() -> None:
    assert MAP.guest_addr(0x7000_1234, 16) == 0x1234
    assert MAP.guest_addr(0x700C_0000, 0x40000) == 0xC0000


def test_guest_address_becomes_a_place_in_a_window() -> None:
    assert MAP.locate(0xC0010, 2) == (0, 0xC0010)


@pytest.mark.parametrize(
    ("start", "size"),
    [
        (0x6FFF_FFFF, 2),
        (0x7009_FFFF, 2),
        (0x700A_0000, 1),
        (0x700B_FFFF, 2),
        (0x700F_FFFF, 2),
        (0x7000_0000, 0x100000),
        (2**64 - 1, 1),
        (0, 2**64),
    ],
    ids=hex,
)
def test_range_that_leaves_its_region_is_refused(start: int, size: int) -> None:
    with pytest.raises(OutsideMemory, match="in none of the 2 memory regions"):
        MAP.guest_addr(start, size)


@given(st.integers(0, 0x110000), st.integers(1, 0x110000))
def test_any_range_is_in_the_region_that_holds_all_of_it(start: int, size: int) -> None:
    inside = [
        p
        for p in MAP.regions
        if all(
            p.region.guest_addr <= at < p.region.guest_addr + p.region.size
            for at in (start, start + size - 1)
        )
    ]
    try:
        found = MAP.locate(start, size)
    except ProtocolError:
        assert not inside
        return
    assert found == (0, inside[0].offset + start - inside[0].region.guest_addr)


def test_offset_does_not_matter_when_a_region_is_removed() -> None:
    left = MAP.remove(MemRegion(0xC0000, 0x40000, 0x700C_0000, 12345))
    assert left.regions == (LOW,)
    assert left.remove(HIGH.region) == left


def test_region_that_is_added_twice_changes_nothing() -> None:
    assert MAP.add(LOW) == MAP
    assert MAP.add(HIGH) == MAP


def test_metadata_shows_where_each_region_is() -> None:
    assert MAP.metadata() == (
        md.Region(0, 0xA0000, 0, 0),
        md.Region(0xC0000, 0x40000, 0, 0xC0000),
    )


def test_adjacent_regions_do_not_overlap() -> None:
    first = PlacedRegion(MemRegion(0, 16, 0, 0), 0, 0)
    second = PlacedRegion(MemRegion(16, 16, 16, 16), 0, 16)
    assert len(MemoryMap().add(first).add(second).regions) == 2


@pytest.mark.parametrize(
    ("guest_addr", "user_addr"), [(15, 100), (100, 15), (0, 100), (100, 0)]
)
def test_regions_that_share_one_byte_overlap(guest_addr: int, user_addr: int) -> None:
    first = PlacedRegion(MemRegion(0, 16, 0, 0), 0, 0)
    second = PlacedRegion(MemRegion(guest_addr, 16, user_addr, 0), 0, 0)
    for one, other in ((first, second), (second, first)):
        with pytest.raises(ProtocolError, match="overlaps"):
            MemoryMap().add(one).add(other)


@pytest.mark.parametrize(
    "other",
    [
        MemRegion(0xC1000, 0x40000, 0x700C_0000, 0),
        MemRegion(0xC0000, 0x3F000, 0x700C_0000, 0),
        MemRegion(0xC0000, 0x40000, 0x700C_1000, 0),
    ],
    ids=["guest address", "size", "user address"],
)
def test_region_that_differs_in_one_thing_is_not_removed(other: MemRegion) -> None:
    assert MAP.remove(other) == MAP
