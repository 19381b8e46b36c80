# SPDX-License-Identifier: Apache-2.0
"""Reads the copies of packets that a worker makes (guest/ring/capture.c).

The worker waits for no reader.  Each slot has a number, which says what is in it: the
packet that is wanted, an earlier one (it is yet to come), or a later one (it is lost).
The number is read before and after the copy; if it has changed, the copy is worthless.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

from vhostpci_shared.barriers import installed_barriers

SLOT = Struct("=QQIIII")
"""struct capture_slot; a test compares them."""
_NUMBER = Struct("=Q")


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet, or the part of it that was copied."""

    time_ns: int
    length: int
    """Of the whole packet, with its net header."""
    ring: int
    """0: to the master, 1: from the master."""
    header: bytes
    """The net header."""
    frame: bytes


class Reader:
    """The packets of one queue pair.

    Args:
        fd: the memory; it may be closed afterwards.
        slots: how many it has.
        slot_size: bytes of each.
    """

    def __init__(self, fd: int, slots: int, slot_size: int) -> None:
        self._map = mmap.mmap(fd, slots * slot_size, prot=mmap.PROT_READ)
        self._slots = slots
        self._slot_size = slot_size
        self._next = 1
        self._barriers = installed_barriers()
        self.lost = 0
        """Packets that were overwritten before they were read."""

    def close(self) -> None:
        self._map.close()

    def read(self) -> Iterator[Packet]:
        """Yield the packets that have come since the last call."""
        while True:
            at = (self._next - 1) % self._slots * self._slot_size
            number = self._number(at)
            if number > self._next:
                self._skip(number)
                continue
            if number != self._next:
                return
            # Order: the number before the copy.  Pairs with the last store of
            # capture_packet().
            self._barriers.barrier_acquire()
            packet = self._copy(at)
            # Order: the copy before the number.  Pairs with the fence there.
            self._barriers.barrier_acquire()
            if self._number(at) != number:
                continue  # it was overwritten meanwhile, and the number says by what
            self._next += 1
            yield packet

    def _number(self, at: int) -> int:
        value: int = _NUMBER.unpack_from(self._map, at)[0]
        return value

    def _skip(self, number: int) -> None:
        """Go on with the oldest packet that may be there, a quarter of a lap ahead.

        The very oldest is the next one to be overwritten.
        """
        ahead = min(self._slots // 4, self._slots - 1)
        oldest = number - self._slots + 1 + ahead
        following = max(oldest, self._next + 1)
        self.lost += following - self._next
        self._next = following

    def _copy(self, at: int) -> Packet:
        _, time_ns, length, copied, ring, hdr_len = SLOT.unpack_from(self._map, at)
        start = at + SLOT.size
        # Whatever the numbers are: a slice ends where the slot does.
        data = self._map[start : min(start + copied, at + self._slot_size)]
        return Packet(time_ns, length, ring, data[:hdr_len], data[hdr_len:])
