# SPDX-License-Identifier: Apache-2.0
"""Translate the master's addresses to windows and offsets that the slave can map.

The same byte has up to four addresses: the guest's physical one (descriptors), the
front-end's own one (SET_VRING_ADDR), the offset in the front-end's file, and the
offset in a window.  A `MemoryMap` translates the front-end's address to
the guest physical one, and that one to a window and an offset.  It translates ranges
that lie in one region as a whole, and refuses all others.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from vhostpci_shared import metadata as md
from vhostpci_shared.access import Metadata
from vhostpci_shared.vhost_user import MemRegion
from vhostpci_shared.wire import ProtocolError

from ..fds import Fd
from ..keeper.store import Keep
from .kept import ArenaState, AttachedState
from .room import Promise


class OutsideMemory(ProtocolError):
    """An address of the front-end's lies in none of its regions."""


@dataclass(frozen=True, slots=True)
class PlacedRegion:
    """A region of the front-end, with the window and the offset where it lies."""

    region: MemRegion
    window: int
    offset: int

    def __str__(self) -> str:
        first = self.region.guest_addr
        return f"{first:#x}-{first + self.region.size - 1:#x}"


class Windows(Protocol):
    """Places the regions of one front-end in windows, and reads from them."""

    def place(self, region: MemRegion, fd: Fd) -> PlacedRegion:
        """Return the window and the offset of a region, whose memory is the file `fd`.

        Raises:
            ProtocolError: no window can show it; the text says what to change.
        """
        ...

    def read(self, window: int, offset: int, size: int) -> bytes:
        """Read from a window; return fewer bytes where the window ends."""
        ...


class Store(Protocol):
    """The memory files of one device: an `Arena`, or `AttachedMemory`."""

    @property
    def metadata(self) -> Metadata:
        """The metadata region, which is in window 0."""
        ...

    @property
    def file(self) -> Fd:
        """The file of window 0, as it is sent to the slave."""
        ...

    @property
    def size(self) -> int:
        """The size of window 0 in bytes."""
        ...

    def windows(
        self, pid: int, for_vm: Callable[[], bool], *, known: bool = False
    ) -> Windows:
        """Return the windows of a front-end of process `pid`, 0 if unknown.

        `for_vm` says whether the slave is a VM, or will be one, and `known` whether a
        daemon before us has taken its memory already.
        """
        ...

    @property
    def files(self) -> "Mapping[int, WindowFile]":
        """The windows besides window 0, by their numbers."""
        ...

    def capture(self, keep: Keep) -> ArenaState | AttachedState:
        """Return what a successor needs to go on with these files."""
        ...

    def check(self, placed: PlacedRegion) -> None:
        """Check a region that was placed by a daemon before us.

        Raises:
            ProtocolError: it does not lie in one of our windows.
        """

    def drop_windows_except(self, numbers: frozenset[int]) -> None:
        """Close the files of all windows except `numbers` and window 0."""

    def restore(self, *, sizes: bool = True) -> str:
        """Make the metadata whole if another process has damaged it.

        Args:
            sizes: ask the kernel for the file's size, too.  Without that, a cut is seen
                only where it takes the metadata away, which is cheap to see.

        Returns:
            What happened, if the metadata is to be written again.
        """
        ...

    def promise(self) -> Promise | None:
        """Return what the master's memory may still take of a file system of ours."""
        ...

    def reservation(self) -> Generator[Callable[[], None], None, None]:
        """Yield steps that together take memory for all of the master's RAM.

        A step may be called in another thread, and raises HostError if there is no
        space left.
        """
        ...

    def new_problems(self, *, names: bool = True) -> list[str]:
        """Return a message for each problem of a file that we cannot repair, once.

        Args:
            names: whether a name in the files' directory may have changed.

        Raises:
            HostError: the device cannot go on with its files.
        """
        ...

    def discard(self) -> None:
        """Leave no file behind at `close`."""

    def describe(self) -> dict[str, Any]:
        """Return the device's memory for the status."""
        ...

    def close(self) -> None:
        """Close all files, and unmap the metadata."""


@dataclass(frozen=True, slots=True)
class WindowFile:
    """A memory file of the master's, with its size when we received it."""

    file: Fd
    size: int
    key: tuple[int, int, int]
    """Its st_dev, st_ino and st_size."""

    @property
    def fits_bar(self) -> bool:
        """Whether the file can be the BAR of an ivshmem function."""
        # QEMU aborts for a BAR whose size is no power of two.
        return self.size.bit_count() == 1


@dataclass(frozen=True, slots=True)
class MemoryMap:
    """All regions of a front-end, of which no two overlap."""

    regions: tuple[PlacedRegion, ...] = ()

    def add(self, placed: PlacedRegion) -> "MemoryMap":
        """Return the map with one more region.

        Raises:
            ProtocolError: the region overlaps another, or the table is full.
        """
        # Adding an identical region again is a no-op: QEMU 7.2 sends each region once
        # for each queue pair.
        if placed in self.regions:
            return self
        if len(self.regions) >= md.MAX_REGIONS:
            raise ProtocolError(
                f"more than {md.MAX_REGIONS} memory regions", code="P041"
            )
        for other in self.regions:
            if _regions_overlap(placed.region, other.region):
                raise ProtocolError(
                    f"memory region {placed} overlaps {other}", code="P042"
                )
        return MemoryMap((*self.regions, placed))

    def remove(self, region: MemRegion) -> "MemoryMap":
        """Return the map without `region`, whose mmap_offset is ignored."""
        # Removing an unknown region is a no-op: QEMU may have removed it for another
        # queue pair already.
        return MemoryMap(
            tuple(p for p in self.regions if not _same_region(p.region, region))
        )

    def guest_addr(self, user_addr: int, size: int) -> int:
        """Return the guest physical address of a range at the front-end's address.

        Raises:
            OutsideMemory: the range does not lie in one region.
        """
        for placed in self.regions:
            region = placed.region
            if _range_holds(user_addr, size, region.user_addr, region.size):
                return region.guest_addr + (user_addr - region.user_addr)
        raise OutsideMemory(
            f"address {user_addr:#x} with {size} bytes is in none of the "
            f"{len(self.regions)} memory regions",
            code="P043",
        )

    def locate(self, guest_addr: int, size: int) -> tuple[int, int]:
        """Return the window and the offset of a range at a guest physical address.

        Raises:
            ProtocolError: the range does not lie in one region.
        """
        for placed in self.regions:
            region = placed.region
            if _range_holds(guest_addr, size, region.guest_addr, region.size):
                return placed.window, placed.offset + (guest_addr - region.guest_addr)
        raise ProtocolError(
            f"guest address {guest_addr:#x} with {size} bytes is in no memory region",
            code="P044",
        )

    @property
    def windows(self) -> frozenset[int]:
        """The numbers of the windows in which the regions lie."""
        return frozenset(placed.window for placed in self.regions)

    def metadata(self) -> tuple[md.Region, ...]:
        """Return the regions as entries of the metadata."""
        return tuple(
            md.Region(p.region.guest_addr, p.region.size, p.window, p.offset)
            for p in self.regions
        )


def _range_holds(start: int, size: int, outer: int, outer_size: int) -> bool:
    """Return whether the outer range holds all of the other range."""
    # No sum can wrap here: Python's integers have no fixed width.
    return outer <= start and size <= outer_size - (start - outer)


def _regions_overlap(one: MemRegion, other: MemRegion) -> bool:
    return _ranges_overlap(
        one.guest_addr, one.size, other.guest_addr, other.size
    ) or _ranges_overlap(one.user_addr, one.size, other.user_addr, other.size)


def _ranges_overlap(start: int, size: int, other: int, other_size: int) -> bool:
    return start < other + other_size and other < start + size


def _same_region(one: MemRegion, other: MemRegion) -> bool:
    return (one.guest_addr, one.user_addr, one.size) == (
        other.guest_addr,
        other.user_addr,
        other.size,
    )
