# SPDX-License-Identifier: Apache-2.0
"""The master's regions, and where each lies in a window that the slave has.

The same byte has up to four addresses: the guest's physical one (descriptors), the
front-end's own one (SET_VRING_ADDR), the offset in the front-end's file, and the
offset in a window.  A `MemoryMap` turns the second into the first, and the first
into the last, for whole ranges only.
"""

from dataclasses import dataclass
from typing import Protocol

from vhostpci_shared import metadata as md
from vhostpci_shared.vhost_user import MemRegion
from vhostpci_shared.wire import ProtocolError

from .fds import Fd


@dataclass(frozen=True, slots=True)
class Placed:
    """A region of the front-end, and the window and offset where the slave has it."""

    region: MemRegion
    window: int
    offset: int

    def __str__(self) -> str:
        first = self.region.guest_addr
        return f"{first:#x}-{first + self.region.size - 1:#x}"


class Windows(Protocol):
    """The ways to give the slave the master's memory; the arena is the first."""

    def place(self, region: MemRegion, fd: Fd) -> Placed:
        """Say where in a window the region of `fd` is.

        Raises:
            ProtocolError: it is in no window; the text says what to change.
        """
        ...

    def read(self, window: int, offset: int, size: int) -> bytes:
        """Read from a window; less comes back where the window ends."""
        ...


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """All regions of a front-end; no two overlap."""

    regions: tuple[Placed, ...] = ()

    def add(self, placed: Placed) -> "MemoryMap":
        """Return the map with one more region; one that is there is no news.

        QEMU 7.2 tells of a region once for each queue pair.

        Raises:
            ProtocolError: it overlaps another, or the table is full.
        """
        if placed in self.regions:
            return self
        if len(self.regions) >= md.MAX_REGIONS:
            raise ProtocolError(f"more than {md.MAX_REGIONS} memory regions")
        for other in self.regions:
            if _overlap(placed.region, other.region):
                raise ProtocolError(f"memory region {placed} overlaps {other}")
        return MemoryMap((*self.regions, placed))

    def remove(self, region: MemRegion) -> "MemoryMap":
        """Return the map without `region`, whose mmap_offset is ignored.

        One that is not there may have gone when another queue pair said so.
        """
        return MemoryMap(tuple(p for p in self.regions if not _same(p.region, region)))

    def guest_addr(self, user_addr: int, size: int) -> int:
        """Return the guest physical address of a range at the front-end's address.

        Raises:
            ProtocolError: the range does not lie in one region.
        """
        for placed in self.regions:
            region = placed.region
            if _inside(user_addr, size, region.user_addr, region.size):
                return region.guest_addr + (user_addr - region.user_addr)
        raise ProtocolError(
            f"address {user_addr:#x} with {size} bytes is in none of the "
            f"{len(self.regions)} memory regions"
        )

    def locate(self, guest_addr: int, size: int) -> tuple[int, int]:
        """Return window and offset of a range at a guest physical address.

        Raises:
            ProtocolError: the range does not lie in one region.
        """
        for placed in self.regions:
            region = placed.region
            if _inside(guest_addr, size, region.guest_addr, region.size):
                return placed.window, placed.offset + (guest_addr - region.guest_addr)
        raise ProtocolError(f"guest address {guest_addr:#x} is in no memory region")

    def metadata(self) -> tuple[md.Region, ...]:
        """Return the regions as the slave is to see them."""
        return tuple(
            md.Region(p.region.guest_addr, p.region.size, p.window, p.offset)
            for p in self.regions
        )


def _inside(start: int, size: int, outer: int, outer_size: int) -> bool:
    """Whether a range lies in another; nothing here can wrap: Python's numbers."""
    return outer <= start and size <= outer_size - (start - outer)


def _overlap(one: MemRegion, other: MemRegion) -> bool:
    return _meet(one.guest_addr, one.size, other.guest_addr, other.size) or _meet(
        one.user_addr, one.size, other.user_addr, other.size
    )


def _meet(start: int, size: int, other: int, other_size: int) -> bool:
    return start < other + other_size and other < start + size


def _same(one: MemRegion, other: MemRegion) -> bool:
    return (one.guest_addr, one.user_addr, one.size) == (
        other.guest_addr,
        other.user_addr,
        other.size,
    )
