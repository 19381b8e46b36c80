# SPDX-License-Identifier: Apache-2.0
"""The one layout that C and Python both have: a ring's entry in the metadata."""

from dataclasses import fields
from typing import Any

from vhostpci_guest.dataplane.native import c_layout
from vhostpci_shared import metadata as md

C = c_layout("ring_meta")


def packed(name: str, size: int) -> bytes:
    """Return an entry in which one field has all its bits set, and the rest none."""
    values: dict[str, Any] = {field.name: 0 for field in fields(md.Ring)}
    return bytes(md.Ring(**{**values, name: 2 ** (8 * size) - 1}))


def test_entry_of_a_ring_is_as_long_in_c_as_in_python() -> None:
    assert md.Ring.layout.size == C.size


def test_fields_of_a_ring_are_where_c_has_them_and_as_wide() -> None:
    names = [field.name for field in fields(md.Ring)]
    assert [*names, "reserved"] == list(C.members)
    for name in names:
        at, size = C.members[name]
        expected = bytes(at) + b"\xff" * size + bytes(C.size - at - size)
        assert packed(name, size) == expected, name
