# SPDX-License-Identifier: Apache-2.0
"""A fake master: its memory, and the driver of one split virtqueue.

``send``, ``post`` and ``collect`` follow VIRTIO, as Linux's virtio_ring.c does.
``put_desc``, ``publish``, ``move_used`` and ``Memory`` write any value, valid or not.
"""

import mmap
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from vhostpci_guest.dataplane.interface import MemRegion
from vhostpci_guest.dataplane.native import address_of

NEXT, WRITE, INDIRECT = 1, 2, 4
NO_INTERRUPT = NO_NOTIFY = 1

MIB = 1 << 20


class Region:
    """A region of guest physical memory: a memfd, or another file, that is mapped.

    Each region has a separate mapping, so regions that are adjacent in the master are
    not adjacent here.
    """

    def __init__(self, guest_addr: int, size: int, fd: int | None = None) -> None:
        self.guest_addr = guest_addr
        self.size = size
        self._fd = _memory(size) if fd is None else os.dup(fd)
        self._map = mmap.mmap(self._fd, size)
        self.host_addr = address_of(self._map)
        self.bytes = memoryview(self._map)
        # An aligned access through a cast is one load or store, as in a driver;
        # struct.pack_into() would go byte by byte.
        words = self.bytes[: size // 8 * 8]
        self.words = {2: words.cast("H"), 4: words.cast("I"), 8: words.cast("Q")}

    def close(self) -> None:
        for view in (*self.words.values(), self.bytes):
            view.release()
        self._map.close()
        os.close(self._fd)

    def cut(self) -> None:
        """Cut the file to nothing: without a guard the next access ends the process."""
        self.cut_to(0)

    def cut_to(self, size: int) -> None:
        """Cut the file to `size` bytes, of which each page is mapped still."""
        os.ftruncate(self._fd, size)

    def grow(self) -> None:
        """Give a file that was cut its length back; it holds zeros."""
        os.ftruncate(self._fd, self.size)


def _memory(size: int) -> int:
    fd = os.memfd_create("master")
    os.ftruncate(fd, size)
    return fd


class Memory:
    """Guest physical memory; by default two adjacent regions and one far above."""

    def __init__(self, *regions: tuple[int, int]) -> None:
        layout = regions or ((0x10000, MIB), (0x10000 + MIB, MIB), (1 << 32, 4 * MIB))
        self.regions = [Region(addr, size) for addr, size in layout]
        self._next = self.regions[-1].guest_addr

    def close(self) -> None:
        for region in self.regions:
            region.close()

    def table(self) -> list[MemRegion]:
        return [MemRegion(r.guest_addr, r.size, r.host_addr) for r in self.regions]

    def allocate(self, size: int, align: int = 16) -> int:
        """Return the guest address of unused memory in the last region."""
        addr = -(-self._next // align) * align
        self._next = addr + size
        last = self.regions[-1]
        assert self._next <= last.guest_addr + last.size, "the master's memory is full"
        return addr

    def _at(self, addr: int) -> tuple[Region, int]:
        for region in self.regions:
            if 0 <= addr - region.guest_addr < region.size:
                return region, addr - region.guest_addr
        raise AssertionError(f"the test uses {addr:#x}, which does not exist")

    def host_addr(self, addr: int) -> int:
        region, offset = self._at(addr)
        return region.host_addr + offset

    def load(self, addr: int, size: int) -> int:
        region, offset = self._at(addr)
        return region.words[size][offset // size]

    def store(self, addr: int, size: int, value: int) -> None:
        region, offset = self._at(addr)
        region.words[size][offset // size] = value

    def read(self, addr: int, size: int) -> bytes:
        data = b""
        while len(data) < size:
            region, offset = self._at(addr + len(data))
            data += bytes(region.bytes[offset : offset + size - len(data)])
        return data

    def write(self, addr: int, data: bytes) -> None:
        while data:
            region, offset = self._at(addr)
            part = data[: region.size - offset]
            region.bytes[offset : offset + len(part)] = part
            addr, data = addr + len(part), data[len(part) :]


@dataclass(frozen=True, slots=True)
class Desc:
    addr: int
    len: int
    flags: int = 0
    next: int = 0

    def __bytes__(self) -> bytes:
        return b"".join(
            value.to_bytes(size, "little")
            for value, size in (
                (self.addr, 8),
                (self.len, 4),
                (self.flags, 2),
                (self.next, 2),
            )
        )


@dataclass(frozen=True, slots=True)
class Used:
    """A used chain: its head, and the bytes that the device wrote into it."""

    head: int
    len: int
    data: bytes


class Driver:
    """The driver of a queue of ``num`` entries, its indices starting at ``start``."""

    FRESH = 0
    """Where a ring starts that nothing was in yet."""

    avail_idx: int
    last_used: int
    _kicked: int
    _free: list[int]

    def __init__(
        self,
        memory: Memory,
        *,
        num: int = 8,
        start: int | None = None,
        event_idx: bool = False,
        in_order: bool = False,
        writable: bool = False,
    ) -> None:
        self.memory = memory
        self.num = num
        self.event_idx = event_idx
        # A receive chain without an entry would count as filled completely.
        self._skips = in_order and not writable
        self.flags = WRITE if writable else 0
        self.desc = memory.allocate(16 * num)
        self.avail, self.used = self._allocate_other_areas()
        self.kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._barrier = threading.Lock()
        self._begin(self.FRESH if start is None else start)

    def _allocate_other_areas(self) -> tuple[int, int]:
        """Return the driver area and the device area."""
        avail = self.memory.allocate(6 + 2 * self.num, 2)
        return avail, self.memory.allocate(6 + 8 * self.num, 4)

    def _begin(self, start: int) -> None:
        """Begin with an empty ring at ``start``."""
        self._chains: dict[int, tuple[list[int], list[Desc]]] = {}
        self.memory.store(self.used + 2, 2, start)
        self.forget(start)

    def close(self) -> None:
        os.close(self.kick_fd)
        os.close(self.call_fd)

    # What a correct driver does.

    def send(self, *pieces: bytes, indirect: bool = False) -> int:
        """Make a chain of buffers with these bytes available; return its head."""
        descs = []
        for piece in pieces:
            addr = self.memory.allocate(len(piece), 1)
            self.memory.write(addr, piece)
            descs.append(Desc(addr, len(piece)))
        return self.offer(*descs, indirect=indirect)

    def post(self, *sizes: int, indirect: bool = False) -> int:
        """Make a chain of empty buffers of these sizes available; return its head."""
        descs = [Desc(self.memory.allocate(n, 1), n) for n in sizes]
        return self.offer(*descs, indirect=indirect)

    def room(self) -> int:
        """Return how many descriptors a chain may have now."""
        return len(self._free)

    def offer(
        self, *descs: Desc, indirect: bool = False, table: int | None = None
    ) -> int:
        """Make these descriptors available as a chain; return its head.

        `table` is where an indirect table may be put; by default in unused memory.
        """
        chain = [Desc(d.addr, d.len, d.flags | self.flags) for d in descs]
        if indirect or table is not None:
            if table is None:
                table = self.memory.allocate(16 * len(chain))
            self.put_table(table, *chain)
            head = self._put_chain(
                [Desc(table, 16 * len(chain), INDIRECT)], buffers=chain
            )
        else:
            head = self._put_chain(chain, buffers=chain)
        self.put_avail(head)
        self.publish(self.avail_idx)
        return head

    def _put_chain(self, chain: Sequence[Desc], buffers: list[Desc]) -> int:
        assert len(chain) <= len(self._free), "the test offers too much"
        slots = [self._free.pop(0) for _ in chain]
        for slot, after, d in zip(slots, [*slots[1:], 0], chain, strict=True):
            more = NEXT if slot != slots[-1] else 0
            self.put_desc(slot, Desc(d.addr, d.len, d.flags | more, after))
        self._chains[slots[0]] = (slots, buffers)
        return slots[0]

    def collect(self) -> list[Used]:
        """Return the used chains since the last call, in the order of the used ring."""
        done = []
        while self.last_used != self.used_idx():
            elem = self.used + 4 + 8 * (self.last_used % self.num)
            last = self.memory.load(elem, 4)
            length = self.memory.load(elem + 4, 4)
            # "In-order use of descriptors": all chains up to this one.
            while self._skips and (head := next(iter(self._chains))) != last:
                done.append(self._take_back(head, 0))
            done.append(self._take_back(last, length))
        return done

    def _take_back(self, head: int, length: int) -> Used:
        slots, buffers = self._chains.pop(head)
        data = b"".join(self.memory.read(d.addr, d.len) for d in buffers)
        self._free += slots
        self.last_used = (self.last_used + 1) % 2**16
        return Used(head, length, data[:length])

    def forget(self, index: int) -> None:
        """Continue with an empty ring at ``index``, as a reloaded driver does."""
        self.avail_idx = self.last_used = self._kicked = index
        self._free = list(range(self.num))
        self._chains.clear()
        self.publish(index)

    def kick(self) -> bool:
        """Kick if the device wants it, as "Available Buffer Notification" says."""
        old, self._kicked = self._kicked, self.avail_idx
        with self._barrier:  # a locked instruction: idx first, then avail_event
            pass
        if self.event_idx:
            event = self.memory.load(self.avail_event, 2)
            wanted = (self.avail_idx - event - 1) % 2**16 < (
                self.avail_idx - old
            ) % 2**16
        else:
            wanted = self.memory.load(self.used, 2) != NO_NOTIFY
        if wanted:
            os.eventfd_write(self.kick_fd, 1)
        return wanted

    def calls(self) -> int:
        """Return the number of calls since the last time."""
        try:
            return os.eventfd_read(self.call_fd)
        except BlockingIOError:
            return 0

    def ask_for_calls(self, wanted: bool) -> None:
        """Enable or suppress calls; with EVENT_IDX the next used chain triggers one."""
        if self.event_idx:
            event = self.last_used if wanted else self.last_used - 1
            self.memory.store(self.used_event, 2, event % 2**16)
        else:
            self.memory.store(self.avail, 2, 0 if wanted else NO_INTERRUPT)

    def after(self, index: int, count: int) -> int:
        """Return the index `count` chains of one descriptor behind another."""
        return (index + count) % 2**16

    def has_used(self) -> bool:
        """Whether `collect` would return a chain."""
        return self.used_idx() != self.last_used

    def base_of_qemu(self) -> int:
        """Return the base that QEMU gives when it connects again."""
        return self.used_idx()

    def used_idx(self) -> int:
        return self.memory.load(self.used + 2, 2)

    @property
    def used_event(self) -> int:
        return self.avail + 4 + 2 * self.num

    @property
    def avail_event(self) -> int:
        return self.used + 4 + 8 * self.num

    # Single steps of the methods above; only a hostile driver takes one alone.

    def put_desc(self, index: int, desc: Desc) -> None:
        self.memory.write(self.desc + 16 * index, bytes(desc))

    def put_table(self, addr: int, *chain: Desc) -> None:
        """Write an indirect table whose descriptors follow each other."""
        for i, d in enumerate(chain):
            more = NEXT if i + 1 < len(chain) else 0
            link = Desc(d.addr, d.len, d.flags | more, (i + 1) % len(chain))
            self.memory.write(addr + 16 * i, bytes(link))

    def put_avail(self, head: int) -> None:
        """Fill the next entry of the avail ring, which `publish` then makes visible."""
        slot = self.avail + 4 + 2 * (self.avail_idx % self.num)
        self.memory.store(slot, 2, head)
        self.avail_idx = (self.avail_idx + 1) % 2**16

    def publish(self, idx: int) -> None:
        self.memory.store(self.avail + 2, 2, idx % 2**16)

    def hand_over(self, *chain: Desc) -> None:
        """Write descriptors unchanged from entry 0 on; make entry 0 available."""
        for i, d in enumerate(chain):
            self.put_desc(i, d)
        self.put_avail(0)
        self.publish(self.avail_idx)

    def move_used(self, idx: int) -> None:
        """Move the used index, as another back-end on the same ring does."""
        self.memory.store(self.used + 2, 2, idx % 2**16)

    def bytes_of_ring(self) -> bytes:
        return self.memory.read(self.desc, self.used + 6 + 8 * self.num - self.desc)


class Machine:
    """A master's memory and the two drivers of a queue pair."""

    def __init__(
        self,
        *regions: tuple[int, int],
        kind: type[Driver] = Driver,
        num: int = 8,
        start: int = 0,
        event_idx: bool = False,
        in_order: bool = False,
    ) -> None:
        with ExitStack() as stack:
            self.memory = Memory(*regions)
            stack.callback(self.memory.close)
            self.rx, self.tx = (
                kind(
                    self.memory,
                    num=num,
                    start=start,
                    event_idx=event_idx,
                    in_order=in_order,
                    writable=writable,
                )
                for writable in (True, False)
            )
            stack.callback(self.rx.close)
            stack.callback(self.tx.close)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
