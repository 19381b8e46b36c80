# SPDX-License-Identifier: Apache-2.0
"""What a data plane must do, and the types that it takes and returns.

A data plane moves packets between the master's rings and the slave.  `workers.py` is
ours: threads in C, on a TAP.  Another one hands the rings to the slave's kernel
(vhost-net) or to another process (vhost-user): `RingConf` has what each of them needs.
A `Port` is where the packets go, a TAP or the socket of that process, and outlives the
data planes that are made on it.
"""

import ctypes
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from vhostpci_shared import metadata as md
from vhostpci_shared import packed
from vhostpci_shared.errors import Coded
from vhostpci_shared.metadata import AgentRingState
from vhostpci_shared.position import Position
from vhostpci_shared.virtio import AVAIL_IDX_OFFSET

from ..interfaces import Call, WindowFile
from ..net_options import NetOptions
from .faults import Fault


@dataclass(frozen=True, slots=True)
class MemRegion:
    """A range of the master's guest-physical memory, mapped here at `host_addr`."""

    guest_addr: int
    size: int
    host_addr: int
    file: WindowFile | None = None
    """The file that another process can map; None: its window has none."""
    offset: int = 0
    """Where in that file the region begins, in bytes."""
    no_file: str = ""
    """Why `file` is None, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RingConf:
    """A ring to run: struct ring_conf of ring_api.h, and the features."""

    desc: int
    """Guest-physical address, as are `driver` and `device`."""
    driver: int
    device: int
    size: int
    base: int
    """Where to start: the used index in memory (see `check_base`), or the position."""
    hdr_len: int
    """Length of the net header: 12 with VERSION_1 or MRG_RXBUF, else 10."""
    max_packet: int
    """Longest packet to the master; one that its buffers cannot hold is dropped."""
    features: int = 0
    """Virtio feature bits that the master's driver acknowledged.  The next five are
    taken from them; a plane that runs another back-end passes all of them on."""
    event_idx: bool = False
    indirect: bool = False
    in_order: bool = False
    mergeable: bool = False
    packed: bool = False
    segment_udp: bool = False
    """Whether the master may send UDP packets with GSO, which the TAP does not know."""
    kick_fd: int | None = None
    """Eventfd that stays the device's; None: poll."""
    owns_kick: bool = False
    """Whether `kick_fd` is the data plane's from the start on, and closed by it."""
    call: Call | None = None
    """Belongs to the data plane from the start on; None: never interrupt."""
    meta_addr: int = 0
    """Where the ring's metadata entry is mapped; 0: there is no session."""
    session: int = 0
    """What the metadata entry must say, now and at each use of the ring."""
    position_addr: int = 0
    """Where a packed ring's position in the metadata is mapped; 0: it has none."""
    origin: int = 0
    """What goes into it: the origin that the metadata entry names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counts since the data plane was made: struct ring_stats of ring_api.h.

    A data plane leaves at 0 what it does not count.
    """

    packets: int = 0
    bytes: int = 0
    kicks: int = 0
    kicks_suppressed: int = 0
    polls: int = 0
    calls: int = 0
    calls_suppressed: int = 0
    used_updates: int = 0
    tap_full: int = 0
    no_buffers: int = 0
    spilled: int = 0
    bad_chains: int = 0
    segmented: int = 0
    drop_bad: int = 0
    drop_refused: int = 0
    drop_memory: int = 0
    drop_down: int = 0
    drop_other: int = 0
    drop_read: int = 0
    drop_runt: int = 0
    drop_long: int = 0
    drop_no_room: int = 0
    drop_stop: int = 0
    faults: int = 0
    batches: tuple[int, ...] = (0,) * 11
    """Updates of the used index: [i] those that gave back 2^i to 2^(i+1)-1 chains."""

    @property
    def dropped(self) -> int:
        """Packets lost, for any reason."""
        return (
            self.drop_bad
            + self.drop_refused
            + self.drop_memory
            + self.drop_down
            + self.drop_other
            + self.drop_read
            + self.drop_runt
            + self.drop_long
            + self.drop_no_room
            + self.drop_stop
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RingStatus:
    """State, position and counts of one ring."""

    state: AgentRingState = AgentRingState.IDLE
    index: int = 0
    """The used index that was written last: where a successor goes on."""
    index_known: bool = True
    """Whether `index` is that; if not, the used index in memory is."""
    reason: str = ""
    """Why the ring is BROKEN or FENCED and what to do; else empty."""
    fault: Fault = Fault.NONE
    """The same as the C ring driver reports it, with its errno in `error`."""
    error: int = 0
    method: str = ""
    """How a transmit ring's packets go to the TAP, of `tx_methods`; "" if not known."""
    method_reason: str = ""
    """Why it is not io_uring although that was asked for; else empty."""
    stats: Stats = Stats()


class RingRefused(Coded):
    """A ring cannot start, because of what its metadata entry says.

    Args:
        why: what is wrong.
        state: the ring's state from now on.
        code: of the error.
    """

    def __init__(
        self,
        why: str,
        state: AgentRingState = AgentRingState.BROKEN,
        *,
        code: str = "",
    ) -> None:
        super().__init__(why, code=code)
        self.state = state


class Stopping(Exception):
    """A ring will have stopped soon: the data plane's `fileno` is readable then."""


class DataPlane(Protocol):
    """Serves the rings of one device: 2i is pair i's receive, 2i+1 its transmit ring.

    One thread calls it.  No method waits for long: the agent's loop, which all devices
    share, waits for it.
    """

    silent_ticks: int
    """Ticks without a beat of the daemon's after which no ring may run.

    A data plane that does not see when a session ends must stop soon: the master's QEMU
    uses the rings itself once the daemon has died, unless its connection is kept.
    """

    def fileno(self) -> int:
        """Return a descriptor that is readable when `look` has something to do."""

    def look(self) -> bool:
        """Do what is to be done; return whether a ring may have stopped by itself."""

    def tick(self) -> None:
        """Do what is to be done five times a second, as watching time limits."""

    @property
    def offers(self) -> int | None:
        """The virtio feature bits that it can serve; None while that is not known."""

    @property
    def waiting(self) -> str:
        """Why no ring can start now, as "no back-end at PATH"; else empty."""

    def set_memory(self, regions: Sequence[MemRegion]) -> None:
        """Replace the master's memory regions; the caller has stopped all rings."""

    def start(self, index: int, conf: RingConf) -> None:
        """Start a ring that does not run; the caller has called `check_base`.

        The caller starts none while the data plane is `waiting`.

        Raises:
            RingRefused: its entry is impossible, or another back-end has the ring;
                then the data plane has closed what `conf` gives it.
        """

    def stop(self, index: int) -> int:
        """Stop a ring, and return the used index that was written last.

        After it, the data plane touches neither the ring nor a buffer of it.

        Raises:
            Stopping: that takes a while; ask again once `fileno` is readable.
            TimeoutError: the ring did not stop; ask again.
        """

    def status(self, index: int) -> RingStatus:
        """Return state, position and counts of a ring."""

    def summary(self) -> dict[str, Any]:
        """Return what `vhostpci-guest status -j` says of it beside its rings."""

    def close(self) -> None:
        """Stop all rings and free everything."""


class Port(Protocol):
    """Where the packets of one device go: a TAP, or the socket of a back-end.

    It stays while the device is away for a moment.  Any method may raise `Unusable`:
    the port is gone, as a TAP that was deleted.
    """

    @property
    def kind(self) -> str:
        """The data plane that it makes, by the name that the user knows."""

    @property
    def carrier(self) -> bool:
        """Whether those who use the port are told that packets can cross."""

    @property
    def takes_uso(self) -> bool | None:
        """Whether it knows UDP packets with GSO; None before `open`."""

    @property
    def idle(self) -> bool:
        """Whether nothing waits for the master, and without a carrier nothing will."""

    def open(self, queues: int, name: str) -> None:
        """Make the port if there is none, for that many queue pairs.

        Args:
            queues: how many queue pairs.
            name: the device's name in the metadata.

        Raises:
            Unusable: it cannot be made as the user wants.
        """

    def make_plane(self, device: str) -> DataPlane:
        """Make a data plane for the device of that name; the port is open.

        Raises:
            Unusable: this machine lacks something for it.
            OSError: it lacks it for the moment, as a thread.
        """

    def check(self) -> None:
        """Check that the port still exists.

        Raises:
            Unusable: it is gone.
        """

    def follow(self) -> None:
        """Follow what other programs do with the port."""

    def follow_mtu(self, mtu: int) -> None:
        """Set the MTU that the master was told; 0 if it was told none."""

    def set_options(self, options: NetOptions) -> None:
        """Set what the master's driver negotiated."""

    def use_queues(self, pairs: Set[int]) -> None:
        """Take packets for the queue pairs `pairs` only."""

    def discard(self, pair: int) -> None:
        """Throw away the packets that wait in a pair's queue for an earlier driver."""

    def set_carrier(self, on: bool) -> None:
        """Tell those who use the port whether packets can cross."""

    def leave(self) -> None:
        """Keep the port without a carrier, because the device was unplugged."""

    def status(self) -> dict[str, Any]:
        """Return what `vhostpci-guest status -j` says of the port."""

    def close(self) -> None:
        """Remove the port, or leave it to the next agent."""


class Capturing(Protocol):
    """Copies of packets, which another process reads, until `close`."""

    open: bool
    fds: list[int]

    def describe(self) -> dict[str, Any]:
        """Return what a reader of `fds` has to know."""

    def close(self) -> None:
        """End the copies; a second time does nothing."""


@runtime_checkable
class Captures(Protocol):
    """A data plane whose packets can be copied: those that pass through the agent."""

    @property
    def captures(self) -> bool:
        """Whether they are copied now."""

    def capture(self, snaplen: int) -> Capturing:
        """Copy packets, `snaplen` bytes of each with its net header.

        Raises:
            OSError: the machine has no memory or descriptor for it.
        """


def check_base(base: int, device: int, regions: Sequence[MemRegion]) -> None:
    """Refuse a ring that another back-end has worked, for any data plane.

    Two back-ends on one ring corrupt the master's memory, and one that starts behind
    the used index returns buffers a second time: the master's kernel stops at that
    (`id 14 is not a head!`).  vhost-net, for one, checks neither.

    Args:
        base: where the ring is to start.
        device: guest-physical address of the used ring.
        regions: the master's memory.

    Raises:
        RingRefused: the used index is not the base, or does not lie in the memory.
    """
    used = used_index(device, regions)
    if used != base:
        raise RingRefused(
            f"it is to start at {base}, and its used index is {used}: another back-end "
            "has worked it",
            AgentRingState.FENCED,
            code="R025",
        )


def locate(at: int, size: int, regions: Sequence[MemRegion]) -> int | None:
    """Return where guest memory is mapped; None if no region has all of it.

    Args:
        at: guest-physical address.
        size: in bytes.
        regions: the master's memory.
    """
    for region in regions:
        inside = at - region.guest_addr
        if 0 <= inside <= region.size - size:
            return region.host_addr + inside
    return None


def used_index(device: int, regions: Sequence[MemRegion]) -> int:
    """Read a split ring's used index from the master's memory.

    Args:
        device: guest-physical address of the used ring.
        regions: the master's memory.

    Raises:
        RingRefused: the used ring does not lie in the memory.
    """
    # VIRTIO, "The Virtqueue Used Ring": le16 flags, le16 idx
    return _load16(device + 2, regions, f"its used ring at {device:#x}")


def avail_index(driver: int, regions: Sequence[MemRegion]) -> int:
    """Read a split ring's avail index from the master's memory.

    Args:
        driver: guest-physical address of the avail ring.
        regions: the master's memory.

    Raises:
        RingRefused: the avail ring does not lie in the memory.
    """
    # VIRTIO, "The Virtqueue Available Ring": le16 flags, le16 idx
    at = driver + AVAIL_IDX_OFFSET
    return _load16(at, regions, f"its avail ring at {driver:#x}")


def position(
    entry: Position | None, ring: md.Ring, regions: Sequence[MemRegion]
) -> int:
    """Return the position where a packed ring starts.

    Args:
        entry: where an agent has left it, if one has worked it since its base was set.
        ring: its entry.
        regions: the master's memory.

    Raises:
        RingRefused: nothing says where it goes on, or it does not lie in the memory.
    """
    if entry is None:
        if ring.flags & md.RingFlag.RESUME and ring.base == packed.START:
            _check_new(ring, regions)
        start = ring.base
    else:
        start = entry.resolve(_flags(ring, entry.at, regions))
    if packed.is_used(_flags(ring, start, regions), start):
        # Not FENCED: a new session would not help, as there is no index in memory.
        raise RingRefused(
            f"the descriptor at its position, {start:#x}, is used: another device has "
            "worked it; reload the master's driver",
            code="R026",
        )
    return start


def _flags(ring: md.Ring, position: int, regions: Sequence[MemRegion]) -> int:
    at = packed.DESC_SIZE * packed.index(position) + packed.FLAGS_OFFSET
    where = f"its descriptor {packed.index(position)}"
    return _load16(ring.desc + at, regions, where)


def _check_new(ring: md.Ring, regions: Sequence[MemRegion]) -> None:
    """Refuse a ring that was worked, and whose position is lost."""
    if any(_flags(ring, i, regions) & packed.USED for i in range(ring.size)):
        raise RingRefused(
            "it has been worked, and its position is lost; reload the master's driver",
            code="R027",
        )


def _load16(at: int, regions: Sequence[MemRegion], what: str) -> int:
    """Load 16 bits of the master's memory."""
    # An odd address is refused: only an aligned 16-bit load is a single one, and the
    # index may change while it is read.
    address = locate(at, 2, regions) if at % 2 == 0 else None
    if address is None:
        raise RingRefused(f"{what} is not in the memory table", code="R028")
    return ctypes.c_uint16.from_address(address).value
