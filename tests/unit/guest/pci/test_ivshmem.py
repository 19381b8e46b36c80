# SPDX-License-Identifier: Apache-2.0
"""A device's memory in this process."""

import errno
import mmap
import os
import select
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from vhostpci_guest.dataplane.mapping import HUGE_PAGE, Mapping
from vhostpci_guest.eventfds import new_eventfd, signal
from vhostpci_guest.pci.ivshmem import MappedWindow, PciBound, Registers

SIZE = 1 << 16
PAGE = mmap.PAGESIZE


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("window")
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


def test_a_mapping_whose_file_shrinks_is_lost(fd: int) -> None:
    mapping = Mapping(fd, SIZE)
    mapping.view[0] = 1
    assert not mapping.lost
    os.ftruncate(fd, 0)
    assert mapping.view[0] == 0
    assert mapping.lost
    assert select.select([mapping], [], [], 0)[0] == [mapping]
    mapping.close()


def test_a_mapping_that_cannot_be_closed_stays_guarded(fd: int) -> None:
    mapping = Mapping(fd, SIZE)
    part = mapping.view[:8]
    words = part.cast("I")
    part.release()
    with pytest.raises(BufferError):
        mapping.close()
    os.ftruncate(fd, 0)
    assert words[0] == 0
    words.release()
    mapping.close()


def maps() -> str:
    return Path("/proc/self/maps").read_text()


@pytest.fixture
def large() -> Iterator[int]:
    """A file of one huge page and a half."""
    fd = os.memfd_create("large")
    os.ftruncate(fd, HUGE_PAGE * 3 // 2)
    yield fd
    os.close(fd)


def test_a_mapping_with_huge_pages_is_aligned_and_shows_the_file(large: int) -> None:
    size = HUGE_PAGE * 3 // 2 - PAGE
    mapping = Mapping(large, size, offset=PAGE, huge=True)
    assert mapping.address % HUGE_PAGE == 0
    assert len(mapping.view) == size
    mapping.view[0], mapping.view[-1] = 1, 2
    assert os.pread(large, 1, PAGE) == b"\1"
    assert os.pread(large, 1, HUGE_PAGE * 3 // 2 - 1) == b"\2"
    mapping.close()
    assert "memfd:large" not in maps()


def test_a_mapping_with_huge_pages_leaves_no_addresses_reserved(large: int) -> None:
    before = len(maps().splitlines())
    mappings = [Mapping(large, HUGE_PAGE, huge=True) for _ in range(20)]
    for mapping in mappings:
        mapping.close()
    assert abs(len(maps().splitlines()) - before) < 10


def test_a_mapping_with_huge_pages_is_guarded(large: int) -> None:
    mapping = Mapping(large, HUGE_PAGE, huge=True)
    os.ftruncate(large, 0)
    assert (mapping.view[0], mapping.view[-1]) == (0, 0)
    assert mapping.lost
    mapping.close()


def test_a_mapping_with_huge_pages_cannot_be_closed_in_use(large: int) -> None:
    mapping = Mapping(large, HUGE_PAGE, huge=True)
    part = mapping.view[:8]
    with pytest.raises(BufferError):
        mapping.close()
    os.ftruncate(large, 0)
    assert part[0] == 0
    part.release()
    mapping.close()


def test_a_small_mapping_needs_no_huge_page(fd: int) -> None:
    mapping = Mapping(fd, SIZE, huge=True)
    mapping.view[0] = 1
    assert len(mapping.view) == SIZE
    assert os.pread(fd, 1, 0) == b"\1"
    mapping.close()


def test_a_file_that_cannot_be_mapped_is_an_error_with_huge_pages_too() -> None:
    before = len(maps().splitlines())
    with pytest.raises(OSError, match="Bad file descriptor"):
        Mapping(2**16 - 1, HUGE_PAGE, huge=True)
    assert abs(len(maps().splitlines()) - before) < 2


def test_a_machine_that_reserves_no_addresses_maps_small_pages(
    large: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = mmap.mmap

    def refuse(fd: int, *args: int, **kwargs: int) -> mmap.mmap:
        if fd == -1:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return made(fd, *args, **kwargs)

    monkeypatch.setattr("vhostpci_guest.dataplane.mapping.mmap.mmap", refuse)
    caplog.set_level("INFO")
    mapping = Mapping(large, HUGE_PAGE, huge=True)
    assert "without huge pages" in caplog.text
    mapping.view[0] = 1
    assert os.pread(large, 1, 0) == b"\1"
    mapping.close()


class Barriers:
    """Says at each barrier what the doorbell's register holds."""

    def __init__(self, mapping: Mapping) -> None:
        self._mapping = mapping
        self.seen: list[bytes] = []

    def barrier_acquire(self) -> None: ...
    def barrier_release(self) -> None: ...

    def barrier_full(self) -> None:
        self.seen.append(bytes(self._mapping.view[12:16]))


def test_barrier_is_before_the_store_to_a_doorbell(fd: int) -> None:
    """What the signal is about was stored before: see it before the signal."""
    mapping = Mapping(fd, SIZE)
    barriers = Barriers(mapping)
    registers = Registers(mapping, barriers)
    registers.ring(1, 2)
    assert barriers.seen == [bytes(4)]
    assert bytes(mapping.view[12:16]) == b"\2\0\1\0"
    registers.release()
    mapping.close()


class Slot:
    """Where a PCI device is."""

    address = "0000:00:05.0"
    going = False


@pytest.fixture
def slot() -> Slot:
    return Slot()


@pytest.fixture
def request_fd() -> int:
    return new_eventfd()


@pytest.fixture
def bound(fd: int, slot: Slot, request_fd: int) -> Iterator[PciBound]:
    """A device whose kernel may want it back."""
    with ExitStack() as undo:
        undo.callback(os.close, request_fd)
        mappings = [Mapping(fd, SIZE) for _ in range(2)]
        for mapping in mappings:
            undo.callback(mapping.close)
        device = PciBound(
            place=slot,
            binding="vfio",
            registers=mappings[0],
            bar=MappedWindow(mappings[1]),
            vector_count=1,
            vectors=(),
            request=request_fd,
            undo=undo.pop_all(),
        )
    yield device
    device.close()


def test_device_that_the_kernel_requests_is_lost(
    bound: PciBound, slot: Slot, request_fd: int
) -> None:
    assert not bound.lost
    assert request_fd in bound.alarms()
    signal(request_fd)
    assert bound.lost
    bound.close()
    assert slot.going


def test_device_whose_memory_was_taken_away_is_lost(
    bound: PciBound, slot: Slot, fd: int
) -> None:
    os.ftruncate(fd, 0)
    assert bound.window.view[0] == 0
    assert bound.lost
    bound.close()
    assert slot.going


def test_device_that_the_agent_closes_is_not_going(bound: PciBound, slot: Slot) -> None:
    bound.close()
    assert not slot.going
