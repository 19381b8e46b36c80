# SPDX-License-Identifier: Apache-2.0
"""Turns the bytes of a fuzzer's input into choices.

A fuzzer changes single bytes, and cuts and joins inputs.  So each choice takes one byte
where it can: the neighbours of an input then do almost the same.
"""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

NUMBERS = (
    *(0, 1, 2, 3, 4, 7, 8, 16, 63, 64, 128, 255, 256, 0x101, 0x1FF, 1024),
    *(0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x20000, 2**31 - 1, 2**31, 2**32 - 1),
    *(2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 2**16, 2**64 - 2, 2**64 - 1),
)
"""Numbers at which something changes."""


class Choices:
    """The choices of one input; one that is used up chooses the first of everything."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> bool:
        """Whether there are bytes left."""
        return self._at < len(self._data)

    def byte(self) -> int:
        """Return any byte."""
        value = self._data[self._at] if self.left else 0
        self._at += 1
        return value

    def raw(self, size: int) -> bytes:
        """Return so many bytes, or what is left."""
        data = self._data[self._at : self._at + size]
        self._at += size
        return data

    def below(self, end: int) -> int:
        """Return a number from 0 to `end` - 1; `end` is at most 256."""
        return self.byte() % end

    def of(self, values: Sequence[T]) -> T:
        """Return one of these values."""
        return values[self.below(len(values))]

    def flag(self) -> bool:
        """Return true or false."""
        return bool(self.byte() & 1)

    def number(self, *near: int) -> int:
        """Return a number of 64 bits: often one of `near`, or of NUMBERS, or any."""
        at = self.byte()
        if at >= 0xF0:
            return int.from_bytes(self.raw(8), "little")
        known = near if near and at < 0x80 else NUMBERS
        return known[at % len(known)]
