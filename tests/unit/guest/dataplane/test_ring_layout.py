# SPDX-License-Identifier: Apache-2.0
"""What C and Python both declare: a ring's entry in the metadata, enums, counts."""

from dataclasses import fields
from enum import IntEnum
from typing import Any

import pytest

from vhostpci_guest.dataplane.faults import Fault
from vhostpci_guest.dataplane.interface import Stats
from vhostpci_guest.dataplane.native import CLayout, RingIndex, c_enum, c_layout
from vhostpci_shared import metadata as md
from vhostpci_shared.position import Position

ENTRIES = pytest.mark.parametrize(
    ("kind", "c"),
    [(md.Ring, c_layout("ring_meta")), (Position, c_layout("ring_position"))],
)


def packed(kind: Any, name: str, size: int) -> bytes:
    """Return an entry in which one field has all its bits set, and the rest none."""
    values: dict[str, Any] = {field.name: 0 for field in fields(kind)}
    return bytes(kind(**{**values, name: 2 ** (8 * size) - 1}))


@ENTRIES
def test_entry_of_a_ring_is_as_long_in_c_as_in_python(kind: Any, c: CLayout) -> None:
    assert kind.layout.size == c.size


@ENTRIES
def test_fields_of_a_ring_are_where_c_has_them_and_as_wide(
    kind: Any, c: CLayout
) -> None:
    names = [field.name for field in fields(kind)]
    assert {*names, "reserved"} == c.members.keys() - {"position"} | (
        {"at", "next", "reserved"} if "position" in c.members else set()
    )
    # C stores both by one word, of which the first is the lower half.
    where = {**c.members}
    if "position" in where:
        at, _ = where["position"]
        where["at"], where["next"] = (at, 2), (at + 2, 2)
    for name in names:
        at, size = where[name]
        expected = bytes(at) + b"\xff" * size + bytes(c.size - at - size)
        assert packed(kind, name, size) == expected, name


def numbers(enum: type[IntEnum], prefix: str) -> dict[str, int]:
    """Return a Python enum as C declares it, with this prefix to each name."""
    return {prefix + member.name: member.value for member in enum}


def test_states_of_a_ring_have_the_same_numbers_in_c_and_in_the_metadata() -> None:
    assert c_enum("ring_state") == numbers(md.AgentRingState, "RING_")


def test_faults_have_the_same_numbers_in_c_and_in_python() -> None:
    assert c_enum("ring_fault") == numbers(Fault, "RING_FAULT_")


def test_rings_of_a_pair_have_the_same_numbers_in_c_and_in_python() -> None:
    assert c_enum("ring_index") == {**numbers(RingIndex, "RING_"), "RING_COUNT": 2}


def test_counts_have_the_same_names_in_c_and_in_python() -> None:
    assert list(c_layout("ring_stats").members) == [one.name for one in fields(Stats)]
