# SPDX-License-Identifier: Apache-2.0
"""Descriptors, one by one, and the tables that an indirect one names."""

from struct import Struct
from typing import Any

from .guest_memory import GuestMemory, Unreadable

Json = dict[str, Any]

SIZE = 16
NEXT, WRITE, INDIRECT = 1, 2, 4
_NAMES = {NEXT: "NEXT", WRITE: "WRITE", INDIRECT: "INDIRECT"}

SPLIT, PACKED = Struct("<QIHH"), Struct("<QIHH")
"""addr, len, flags, next; and addr, len, id, flags."""

MOST_IN_TABLES = 4096
"""Entries of indirect tables that are shown for one ring."""


def flag_names(flags: int, more: dict[int, str] | None = None) -> list[str]:
    """Return the names of a descriptor's flags, lowest first."""
    known = _NAMES | (more or {})
    bits = (1 << bit for bit in range(16) if flags >> bit & 1)
    return [known.get(bit, f"bit {bit.bit_length() - 1}") for bit in bits]


def buffer(memory: GuestMemory, address: int, length: int) -> Json:
    """Return where a buffer is, or why nothing may follow it there."""
    try:
        return {"place": str(memory.check_buffer(address, length)), "problem": ""}
    except Unreadable as why:
        return {"place": "", "problem": str(why)}


class Tables:
    """Reads the tables of indirect descriptors, up to a number of entries in all.

    Args:
        memory: where they are.
        packed: whether an entry has an id in place of `next`.
    """

    def __init__(self, memory: GuestMemory, *, packed: bool) -> None:
        self._memory = memory
        self._packed = packed
        self._left = MOST_IN_TABLES

    def read(self, address: int, length: int) -> tuple[list[Json], str]:
        """Return the entries of a table, and why some or all are missing."""
        count, rest = divmod(length, SIZE)
        if rest or not count:
            return [], f"a table of {length} bytes is none"
        shown = min(count, self._left)
        if not shown:
            return [], f"not shown: more than {MOST_IN_TABLES} entries in tables"
        try:
            # The whole table must be there, whatever is shown of it.
            self._memory.place(address, length)
            data = self._memory.read(address, shown * SIZE)
        except Unreadable as why:
            return [], f"the table: {why}"
        self._left -= shown
        problem = f"{count - shown} more entries are not shown" * (shown < count)
        return [self._entry(n, data) for n in range(shown)], problem

    def _entry(self, index: int, data: bytes) -> Json:
        if self._packed:
            address, length, ident, flags = PACKED.unpack_from(data, index * SIZE)
            last = {"id": ident}
        else:
            address, length, flags, after = SPLIT.unpack_from(data, index * SIZE)
            last = {"next": after}
        found = {
            "index": index,
            "addr": address,
            "len": length,
            "flags": flag_names(flags),
            **last,
            **buffer(self._memory, address, length),
        }
        if flags & INDIRECT:
            found |= {"place": "", "problem": "a table in a table: not followed"}
        return found
