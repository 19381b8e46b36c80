# SPDX-License-Identifier: Apache-2.0
"""Positions in a packed ring, and what the flags of its descriptors say."""

import pytest

from vhostpci_shared import packed
from vhostpci_shared.position import Position

A, U = packed.AVAIL, packed.USED


def ring(*flags: int) -> bytes:
    """Return the descriptors of a ring with these flags."""
    return b"".join(bytes(14) + value.to_bytes(2, "little") for value in flags)


@pytest.mark.parametrize(
    ("wrap", "flags", "used", "was"),
    [
        (1, A, False, False),  # available
        (1, A | U, True, True),
        (1, U, False, True),  # available in the next lap
        (1, 0, False, False),  # used in the last one
        (0, U, False, False),
        (0, 0, True, True),
        (0, A, False, True),
        (0, A | U, False, False),
    ],
)
def test_flags_say_whether_a_descriptor_is_used(
    wrap: int, flags: int, used: bool, was: bool
) -> None:
    position = wrap << 15 | 5
    for other in (0, 7):  # NEXT, WRITE and INDIRECT mean nothing here
        assert packed.is_used(flags | other, position) is used
        assert packed.was_used(flags | other, position) is was


def test_ring_is_new_until_a_descriptor_was_used() -> None:
    assert packed.is_new(ring(0, A, A | 2, 0))
    assert not packed.is_new(ring(0, 0, A | U, 0))
    assert not packed.is_new(ring(A, A, A, U))


def test_flags_are_those_of_the_positions_descriptor() -> None:
    descriptors = ring(1, 2, 0x8083, 4)
    assert packed.flags_at(descriptors, 2) == 0x8083
    assert packed.flags_at(descriptors, 0x8003) == 4


@pytest.mark.parametrize(("flags", "expected"), [(A, 0x80FF), (A | U, 1), (U, 1)])
def test_position_is_the_next_one_once_the_descriptor_is_used(
    flags: int, expected: int
) -> None:
    entry = Position(origin=1, size=256, at=0x80FF, next=1)
    assert entry.resolve(flags) == expected


@pytest.mark.parametrize(
    ("change", "valid"),
    [
        ({}, True),
        ({"origin": 0}, False),
        ({"at": 256}, False),
        ({"at": 0x80FF}, True),
        ({"next": 0x8100}, False),
        ({"size": 0, "at": 0, "next": 0}, False),
        ({"size": 32768, "at": 0xFFFF}, True),
        ({"size": 32769}, False),
    ],
    ids=str,
)
def test_position_outside_its_ring_is_not_valid(
    change: dict[str, int], valid: bool
) -> None:
    fields = {"origin": 1, "size": 256, "at": 0, "next": 0} | change
    assert Position(**fields).valid is valid
