# SPDX-License-Identifier: Apache-2.0
"""The metadata region's entry in which an agent tells people about itself.

The daemon shows it in `vhostpci-host status`, and decides nothing by it.  An agent of
an earlier release leaves it as zeros.  `metadata.py` has the other entries.
"""

from dataclasses import dataclass
from enum import IntFlag
from struct import Struct
from typing import ClassVar, Self

from .metadata import limited_bytes, safe_text
from .wire import unpack


class Uncounted(IntFlag):
    """Which counts of the agent's ring entries stay 0, since nothing counts them."""

    PACKETS = 1
    OCTETS = 2
    DROPS = 4
    KICKS = 8
    CALLS = 16


class AboutFlag(IntFlag):
    """How the agent reaches its device."""

    INTERRUPTS = 1  # the device's vectors signal it; else it polls
    SLOW = 2  # reads of the window are as slow as those of uncached memory


COUNTED = Uncounted(0)
NO_ABOUT_FLAGS = AboutFlag(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What an agent tells people: its version, its port, what it does not count."""

    instance: int = 0  # the agent's, as in `Agent`; any other: the rest means nothing
    uncounted: Uncounted = COUNTED
    flags: AboutFlag = NO_ABOUT_FLAGS
    version: str = ""  # of the distribution vhostpci-guest
    port: str = ""  # the TAP, or the socket of the slave's back-end

    layout: ClassVar = Struct("<QII16s96s")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse the entry; all that it can say is harmless to show."""
        instance, uncounted, flags, version, port = unpack(cls.layout, data)
        return cls(
            instance=instance,
            uncounted=Uncounted(uncounted & 31),
            flags=AboutFlag(flags & 3),
            version=safe_text(version),
            port=safe_text(port),
        )

    def __bytes__(self) -> bytes:
        return self.layout.pack(
            self.instance,
            self.uncounted,
            self.flags,
            limited_bytes(self.version, 16),
            limited_bytes(self.port, 96),
        )
