# SPDX-License-Identifier: Apache-2.0
"""The driver of a packed virtqueue, beside the split one of `driver.py`.

It follows VIRTIO's "Packed Virtqueues" as Linux's virtio_ring.c does.  A position is
an index and, in bit 15, a wrap counter.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence

from tests.fakes.driver import INDIRECT, NEXT, Desc, Driver, Used

AVAIL, USED = 1 << 7, 1 << 15
WRAP = 1 << 15
EVENT_ENABLE, EVENT_DISABLE, EVENT_DESC = 0, 1, 2


class Packed(int):
    """The start of a packed ring: a position, whose index may count from the end."""

    def position(self, num: int) -> int:
        """Return the position in a ring of `num` descriptors."""
        index = self & ~WRAP
        return self & WRAP | (index if index < num else (index - WRAP) % num)


FRESH = Packed(WRAP)
LAP_END = Packed(WRAP - 2)
"""Two descriptors before the end of an even lap."""


def advance(position: int, count: int, num: int) -> int:
    """Return the position `count` descriptors behind another."""
    index = (position & ~WRAP) + count
    return position & WRAP | index if index < num else ~position & WRAP | index - num


def available(position: int) -> int:
    """Return the flags of a descriptor that is available at a position."""
    return AVAIL if position & WRAP else USED


def used(position: int) -> int:
    """Return the flags of a descriptor that is used at a position."""
    return AVAIL | USED if position & WRAP else 0


class PackedDriver(Driver):
    """The driver of a packed ring of ``num`` descriptors, beginning at ``start``."""

    FRESH = FRESH

    def _allocate_other_areas(self) -> tuple[int, int]:
        return self.memory.allocate(4, 4), self.memory.allocate(4, 4)

    def _begin(self, start: int) -> None:
        self._offered: OrderedDict[int, tuple[int, list[Desc]]] = OrderedDict()
        self.forget(start)

    # What a correct driver does.

    def room(self) -> int:
        return self.num - sum(count for count, _ in self._offered.values())

    def offer(
        self, *descs: Desc, indirect: bool = False, table: int | None = None
    ) -> int:
        """Make these descriptors available as a chain; return its id."""
        chain = [Desc(d.addr, d.len, d.flags | self.flags) for d in descs]
        buffers = chain
        if indirect or table is not None:
            if table is None:
                table = self.memory.allocate(16 * len(chain))
            self.put_table(table, *chain)
            chain = [Desc(table, 16 * len(chain), INDIRECT)]
        return self._make_available(chain, buffers)

    def _make_available(self, chain: Sequence[Desc], buffers: list[Desc]) -> int:
        assert len(chain) <= self.room(), "the test offers too much"
        ident = self._ids.pop(0)
        self._offered[ident] = (len(chain), buffers)
        places = [advance(self.avail_idx, i, self.num) for i in range(len(chain))]
        # The head last: with its flags the device may take the whole chain.
        for place, d in reversed(list(zip(places, chain, strict=True))):
            more = NEXT if place != places[-1] else 0
            self.put_at(place, Desc(d.addr, d.len, d.flags | more), ident)
        self.avail_idx = advance(self.avail_idx, len(chain), self.num)
        return ident

    def put_at(self, position: int, desc: Desc, ident: int) -> None:
        """Write a descriptor, its flags last and made available."""
        at = self.desc + 16 * (position & ~WRAP)
        self.memory.store(at, 8, desc.addr)
        self.memory.store(at + 8, 4, desc.len)
        self.memory.store(at + 12, 2, ident)
        self.memory.store(at + 14, 2, desc.flags | available(position))

    def flags_at(self, position: int) -> int:
        return self.memory.load(self.desc + 16 * (position & ~WRAP) + 14, 2)

    def put_flags(self, position: int, flags: int) -> None:
        self.memory.store(self.desc + 16 * (position & ~WRAP) + 14, 2, flags)

    def is_used(self, position: int) -> bool:
        return self.flags_at(position) & (AVAIL | USED) == used(position)

    def collect(self) -> list[Used]:
        done = []
        while self._offered and self.is_used(self.last_used):
            at = self.desc + 16 * (self.last_used & ~WRAP)
            # Length, id and flags by one load.
            word = self.memory.load(at + 8, 8)
            last, length = word >> 32 & 0xFFFF, word & 0xFFFFFFFF
            while self._skips and (ident := next(iter(self._offered))) != last:
                done.append(self._take_back(ident, 0))
            done.append(self._take_back(last, length))
        return done

    def _take_back(self, head: int, length: int) -> Used:
        count, buffers = self._offered.pop(head)
        data = b"".join(self.memory.read(d.addr, d.len) for d in buffers)
        self._ids.append(head)
        self.last_used = advance(self.last_used, count, self.num)
        return Used(head, length, data[:length])

    def forget(self, index: int) -> None:
        """Continue at a position with an empty ring, as if all before it were used."""
        self.avail_idx = self.last_used = self._kicked = index
        self._ids = list(range(self.num))
        self._offered.clear()
        for i in range(self.num):
            place = index & WRAP | i
            before = place if i < index & ~WRAP else place ^ WRAP
            self.memory.write(self.desc + 16 * i, bytes(14))
            self.put_flags(place, used(before))

    def kick(self) -> bool:
        old, self._kicked = self._kicked, self.avail_idx
        with self._barrier:  # a locked instruction: the flags first, then the event
            pass
        event = self.memory.load(self.used, 4)
        position, flags = event & 0xFFFF, event >> 16
        if flags == EVENT_DESC:
            moved = self._distance(old, self.avail_idx)
            wanted = self._distance(old, position) < moved
        else:
            wanted = flags != EVENT_DISABLE
        if wanted:
            os.eventfd_write(self.kick_fd, 1)
        return wanted

    def _distance(self, old: int, new: int) -> int:
        lap = [(p & ~WRAP) + (0 if p & WRAP else self.num) for p in (old, new)]
        return (lap[1] - lap[0]) % (2 * self.num)

    def ask_for_calls(self, wanted: bool) -> None:
        if self.event_idx and wanted:
            self.ask_for_call_at(self.last_used)
        else:
            self._ask(0, EVENT_ENABLE if wanted else EVENT_DISABLE)

    def ask_for_call_at(self, position: int) -> None:
        self._ask(position, EVENT_DESC)

    def _ask(self, position: int, flags: int) -> None:
        self.memory.store(self.avail, 4, position | flags << 16)

    # What only a hostile driver does, or another back-end.

    def put_desc(self, index: int, desc: Desc) -> None:
        """Write a descriptor whose `next` is its id, available at the next position."""
        position = advance(self.avail_idx, index, self.num)
        self.put_at(position, desc, desc.next)

    def put_table(self, addr: int, *chain: Desc) -> None:
        """Write an indirect table; its descriptors have no NEXT."""
        for i, d in enumerate(chain):
            entry = Desc(d.addr, d.len, 0, d.flags)  # id, then flags
            self.memory.write(addr + 16 * i, bytes(entry))

    def hand_over(self, *chain: Desc) -> None:
        """Make descriptors available unchanged, from the next position on."""
        for i in reversed(range(len(chain))):
            self.put_desc(i, chain[i])
        self.avail_idx = advance(self.avail_idx, len(chain), self.num)

    def move_used(self, idx: int) -> None:
        """Use the next descriptor, as another back-end on the same ring does."""
        self.put_flags(self.last_used, used(self.last_used))

    def after(self, index: int, count: int) -> int:
        return advance(index, count, self.num)

    def has_used(self) -> bool:
        return bool(self._offered) and self.is_used(self.last_used)

    def base_of_qemu(self) -> int:
        """Return that of the driver's start: QEMU cannot read another one."""
        return FRESH << 16 | FRESH

    def used_idx(self) -> int:
        raise NotImplementedError("a packed ring has no used index")

    def publish(self, idx: int) -> None:
        raise NotImplementedError("a packed ring has no avail index")

    def put_avail(self, head: int) -> None:
        raise NotImplementedError("a packed ring has no avail ring")

    def bytes_of_ring(self) -> bytes:
        return self.memory.read(self.desc, self.used + 4 - self.desc)
