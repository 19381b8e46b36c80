# SPDX-License-Identifier: Apache-2.0
"""What moves the packets, as the control plane sees it."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vhostpci_shared import metadata as md
from vhostpci_shared.metadata import AgentRingState

from ..interfaces import Doorbell
from ..net_options import NetOptions


@dataclass(frozen=True, slots=True)
class Memory:
    """A piece of the master's memory, and its address in this process."""

    guest_addr: int
    size: int
    address: int


class RingRefused(Exception):
    """A ring cannot start, because of what its entry says; the text says what.

    Args:
        why: the text.
        state: how the ring stands now.
    """

    def __init__(self, why: str, state: AgentRingState = AgentRingState.BROKEN) -> None:
        super().__init__(why)
        self.state = state


@dataclass(frozen=True, slots=True, kw_only=True)
class RingStart:
    """All that a ring needs to run.

    `kick` is an eventfd that stays the device's, None: poll.  `call` is the data
    plane's to close when the ring has stopped, None: never interrupt.  `entry` is
    the address of the ring's entry in the metadata, where its session is.
    """

    ring: md.Ring
    base: int
    kick: int | None
    call: Doorbell | None
    entry: int
    options: NetOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class RingReport:
    """How a ring stands; the counts are since the data plane was made."""

    state: AgentRingState = AgentRingState.IDLE
    index: int = 0
    reason: str = ""
    packets: int = 0
    octets: int = 0
    drops: int = 0
    kicks: int = 0
    calls: int = 0


class DataPlane(Protocol):
    """Serves the rings of one device: 2i is pair i's receive, 2i+1 its transmit ring.

    Called by one thread.  No method waits for long.
    """

    def fileno(self) -> int:
        """Return an eventfd that is readable when a ring broke or was fenced."""

    def set_memory(self, memory: Sequence[Memory]) -> None:
        """Set where the master's memory is; no ring runs."""

    def start(self, index: int, start: RingStart) -> None:
        """Start a ring that does not run.

        Raises:
            RingRefused: its entry says what cannot be, or it is somebody else's;
                then `start.call` is closed, too.
        """

    def stop(self, index: int) -> int:
        """Stop a ring, and return the used index that was written last.

        After it, neither the ring nor a buffer of it is touched.

        Raises:
            TimeoutError: it did not stop; ask again.
        """

    def report(self, index: int) -> RingReport:
        """Return how a ring stands."""

    def close(self) -> None:
        """Stop everything."""


PlaneMaker = Callable[[Sequence[int]], DataPlane]
"""Makes a data plane on a TAP's descriptors, one for each queue pair."""


def used_index(ring: md.Ring, memory: Sequence[Memory]) -> int:
    """Read a split ring's used index from the master's memory.

    Raises:
        RingRefused: it does not lie there.
    """
    at = ring.device + 2  # VIRTIO, "The Virtqueue Used Ring": le16 flags, le16 idx
    for piece in memory:
        inside = at - piece.guest_addr
        if at % 2 == 0 and 0 <= inside <= piece.size - 2:
            return ctypes.c_uint16.from_address(piece.address + inside).value
    raise RingRefused(f"its used ring at {ring.device:#x} is not in the memory table")
