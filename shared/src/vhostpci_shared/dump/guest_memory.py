# SPDX-License-Identifier: Apache-2.0
"""The master's memory as the dump reads it: translated by region, with every bound.

What is out of bounds is said, and never read.  An address may be anything, and so may
the region table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .. import metadata as md
from ..errors import Coded


class Unreadable(Coded):
    """There is no such memory, or it cannot be read; the text says why."""


class Windows(Protocol):
    """Copies from the windows of one device."""

    def size(self, window: int) -> int | None:
        """Return the window's length in bytes; None if it is not there."""
        ...

    def read(self, window: int, offset: int, length: int) -> bytes:
        """Return a copy of a range that lies in the window.

        Raises:
            Unreadable: it cannot be read now.
        """
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a range of the master's memory begins in a window."""

    window: int
    offset: int

    def __str__(self) -> str:
        return f"window {self.window} + {self.offset:#x}"


class GuestMemory:
    """The regions of one device.

    Args:
        regions: those of the metadata that could be parsed.
        windows: where they lie.
    """

    def __init__(self, regions: Sequence[md.Region], windows: Windows) -> None:
        self._regions = regions
        self._windows = windows

    def place(self, address: int, length: int) -> Place:
        """Return where a range begins that lies in one region.

        Raises:
            Unreadable: no region has all of it, or its window lacks it.
        """
        region = self._region(address)
        if address + length > region.guest_addr + region.size:
            raise Unreadable(
                f"{_range(address, length)} reaches beyond its region, which ends at "
                f"{region.guest_addr + region.size:#x}",
                code="S011",
            )
        return self._in_window(region, address, length)

    def check_buffer(self, address: int, length: int) -> Place:
        """Return where a buffer begins; it may span adjacent regions.

        Raises:
            Unreadable: a part of it is in no region, or in no window.
        """
        if not length:
            raise Unreadable("has no length", code="S012")
        first, at, end = None, address, address + length
        # Each turn passes the end of a region, and there are at most 256 of them.
        while at < end:
            region = self._region(at)
            part = min(end, region.guest_addr + region.size) - at
            place = self._in_window(region, at, part)
            first = first or place
            at += part
        assert first is not None, "a buffer with a length"
        return first

    def _region(self, address: int) -> md.Region:
        for region in self._regions:
            if region.guest_addr <= address < region.guest_addr + region.size:
                return region
        raise Unreadable(f"{address:#x} is in no region", code="S013")

    def _in_window(self, region: md.Region, address: int, length: int) -> Place:
        place = Place(region.window, region.offset + address - region.guest_addr)
        size = self._windows.size(region.window)
        if size is None:
            raise Unreadable(f"window {region.window} is not there", code="S014")
        if place.offset + length > size:
            raise Unreadable(
                f"{_range(address, length)} lies beyond window {region.window}, which "
                f"has {size:#x} bytes",
                code="S015",
            )
        return place

    def read(self, address: int, length: int) -> bytes:
        """Return a copy of a range that lies in one region.

        Raises:
            Unreadable: it does not, or cannot be read.
        """
        place = self.place(address, length)
        return self._windows.read(place.window, place.offset, length)


def _range(address: int, length: int) -> str:
    return f"{address:#x} + {length:#x}"
