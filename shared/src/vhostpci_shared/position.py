# SPDX-License-Identifier: Apache-2.0
"""The metadata region's entry for where a packed ring goes on.

The agent's ring driver writes it, and the next agent or the daemon reads it.  What a
position is, is in `packed.py`; the table of the entries is in `metadata.py`.
"""

from dataclasses import dataclass
from struct import Struct
from typing import ClassVar, Self

from . import packed
from .metadata import MAX_RING_SIZE
from .wire import unpack


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a packed ring goes on, as the ring driver (C) keeps it for a successor.

    `at` and `next` are positions (`packed.py`).  They differ while descriptors are made
    used; whether those are can then be seen in the ring: `resolve`.
    """

    origin: int = 0  # of the ring when the agent started it; 0: the rest means nothing
    desc: int = 0
    driver: int = 0
    device: int = 0
    size: int = 0
    at: int = 0
    next: int = 0
    undo: int = 0  # the ring driver's: how a successor takes back half an update

    layout: ClassVar = Struct("<QQQQIHHQ16x")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse the entry; it may say anything (see `valid`)."""
        origin, desc, driver, device, size, at, after, undo = unpack(cls.layout, data)
        return cls(
            origin=origin,
            desc=desc,
            driver=driver,
            device=device,
            size=size,
            at=at,
            next=after,
            undo=undo,
        )

    @property
    def valid(self) -> bool:
        """Whether it names positions within a ring of its size."""
        ends = packed.index(self.at), packed.index(self.next)
        return bool(self.origin) and max(ends) < self.size <= MAX_RING_SIZE

    @property
    def place(self) -> tuple[int, ...]:
        """The ring that it is about: its three addresses, and its size."""
        return self.desc, self.driver, self.device, self.size

    def resolve(self, flags: int) -> int:
        """Return the position where the ring goes on.

        Args:
            flags: those of the descriptor at `at`, now.
        """
        return self.next if packed.was_used(flags, self.at) else self.at

    def __bytes__(self) -> bytes:
        return self.layout.pack(
            self.origin,
            self.desc,
            self.driver,
            self.device,
            self.size,
            self.at,
            self.next,
            self.undo,
        )
