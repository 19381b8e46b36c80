# SPDX-License-Identifier: Apache-2.0
"""What a change of the metadata asks of us.  No input, no output.

Theory of operation.  `check` turns a snapshot, which may hold anything, into a `Want`:
memory that lies inside our windows, and rings.  `plan` compares what is wanted with
how each ring stands (`Run`) and says which rings to stop, and which to start::

                      wanted: no, another session, or another place
        +-----------------------------------------------+
        v                                               |
    STOPPED ---- wanted, and not FENCED or BROKEN ---> RUNNING
      (IDLE)     in this very session                   |  |
                                                        |  +-> BROKEN   by the master
                                                        +----> FENCED   somebody else

Memory or features that change stop all rings first, since all use them.  A window
that is named and not there is such a change: there is no memory until it comes.

A ring goes on where it stopped if its session is the same, and at the daemon's
`base` in a new one.  If another agent process ran it in this session, nobody has
told us for sure where it stopped; then the ring itself says it (`Run.sure`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from vhostpci_shared import metadata as md
from vhostpci_shared.metadata import AgentRingState, DeviceFlag, RingFlag
from vhostpci_shared.wire import ProtocolError

from ..dataplane.interface import MemRegion
from ..errors import Unusable
from ..interfaces import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """What a generation asks for, checked."""

    features: int = 0
    queue_pairs: int = 0
    memory: tuple[MemRegion, ...] = ()
    rings: tuple[md.Ring, ...] = ()
    master: bool = False
    absent: tuple[int, ...] = ()
    """Windows that are named and not there; until they are, there are no rings."""


NOTHING = Want()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How a ring stands with us.

    `place` is all of its entry that it cannot run on without, once it has changed;
    `index` is where it stopped, and `sure` whether we know that ourselves.
    """

    session: int
    state: AgentRingState
    place: tuple[int, ...] = ()
    index: int = 0
    sure: bool = True


@dataclass(frozen=True, slots=True)
class Plan:
    """Rings to stop, whether the memory changed, rings to start; in this order."""

    stop: tuple[int, ...]
    remap: bool
    start: tuple[int, ...]


def check(snapshot: md.Snapshot, windows: Mapping[int, Window], vectors: int) -> Want:
    """Return what a snapshot asks for, if it can be had.

    Args:
        snapshot: what the daemon says.
        windows: those that are there, by their IDs.
        vectors: how many our device has.

    Raises:
        Unusable: our device has too few vectors.
        ProtocolError: it names what is not there, or must not be touched.
    """
    device = snapshot.device
    if vectors < device.vectors:
        raise Unusable(
            f"the device has {vectors} MSI-X vectors, and needs {device.vectors} for "
            f"{device.queue_pairs} queue pair(s): start the slave's QEMU with "
            f"`-device ivshmem-doorbell,vectors={device.vectors},...`"
        )
    for index, ring in enumerate(snapshot.rings):
        if ring.runs and ring.kick_vector >= vectors:
            raise ProtocolError(f"ring {index} kicks vector {ring.kick_vector}")
        if ring.flags & RingFlag.PACKED:
            raise ProtocolError(f"ring {index} is packed, which we don't offer")
    _check_overlap(snapshot.regions)
    _check_numbers(snapshot)
    want = Want(
        features=device.features,
        queue_pairs=device.queue_pairs,
        master=bool(device.flags & DeviceFlag.MASTER),
        absent=tuple(sorted(named(snapshot) - windows.keys())),
    )
    if want.absent:
        return want
    memory = tuple(_locate(region, windows) for region in snapshot.regions)
    return replace(want, memory=memory, rings=snapshot.rings)


def named(snapshot: md.Snapshot) -> frozenset[int]:
    """Return the windows other than 0 that a snapshot names."""
    windows = {region.window for region in snapshot.regions}
    return frozenset(windows - {md.SLAVE_ID})


def _check_numbers(snapshot: md.Snapshot) -> None:
    """Refuse windows that no daemon has: they would be waited for in vain."""
    for number in named(snapshot):
        if not md.FIRST_WINDOW <= number <= md.LAST_WINDOW:
            raise ProtocolError(
                f"the master's memory is in window {number}, which is neither "
                f"{md.SLAVE_ID} nor from {md.FIRST_WINDOW} to {md.LAST_WINDOW}"
            )


def _check_overlap(regions: Sequence[md.Region]) -> None:
    """Refuse regions that share addresses: a buffer would be in two places."""
    ordered = sorted(regions, key=lambda region: region.guest_addr)
    for low, high in pairwise(ordered):
        if high.guest_addr - low.guest_addr < low.size:
            raise ProtocolError(f"regions overlap: {low} and {high}")


def _locate(region: md.Region, windows: Mapping[int, Window]) -> MemRegion:
    """Find a region in its window, outside the metadata."""
    window = windows[region.window]
    room = window.size - (md.SIZE if window.id == md.SLAVE_ID else 0)
    if region.offset > room or region.size > room - region.offset:
        raise ProtocolError(
            f"region of {region.size:#x} bytes at {region.offset:#x} does not fit "
            f"window {window.id}, which has {room:#x} for it"
        )
    return MemRegion(region.guest_addr, region.size, window.address + region.offset)


def place(ring: md.Ring) -> tuple[int, ...]:
    """Return what a ring cannot run on without, once it has changed."""
    return (
        ring.session,
        int(ring.flags & (RingFlag.CALL | RingFlag.PACKED)),
        ring.size,
        ring.desc,
        ring.driver,
        ring.device,
        ring.kick_vector,
        ring.call_peer,
        ring.call_vector,
    )


def plan(now: Want, new: Want, runs: Mapping[int, Run]) -> Plan:
    """Return the steps from `now`, which `runs` came of, to `new`."""
    remap = now.memory != new.memory
    all_stop = (
        remap or now.features != new.features or now.queue_pairs != new.queue_pairs
    )
    stop = tuple(
        index
        for index, run in runs.items()
        if run.state is AgentRingState.RUNNING
        and (all_stop or not _goes_on(run, index, new.rings))
    )
    start = tuple(
        index
        for index, ring in enumerate(new.rings)
        if ring.runs and (index in stop or _may_start(ring, runs.get(index)))
    )
    return Plan(stop, remap, start)


def _goes_on(run: Run, index: int, rings: Sequence[md.Ring]) -> bool:
    """Whether a running ring is wanted just as it runs."""
    return index < len(rings) and rings[index].runs and run.place == place(rings[index])


def _may_start(ring: md.Ring, run: Run | None) -> bool:
    """Whether a ring that does not run may; a fence holds for its whole session."""
    if run is None or run.session != ring.session:
        return True
    return run.state in (AgentRingState.IDLE, AgentRingState.STOPPED)


def base(ring: md.Ring, run: Run | None) -> int | None:
    """Return the index where a ring starts; None: where the ring itself says."""
    if run is not None and run.session == ring.session:
        return run.index if run.sure else None
    return ring.base


def inherited(entry: md.AgentRing) -> Run | None:
    """Return how a ring stands that another agent process ran before us.

    One that broke may be tried again.  One that was fenced may not: to take its
    index from the ring would be to climb over the fence.
    """
    if entry.state is AgentRingState.IDLE:
        return None
    fenced = entry.state is AgentRingState.FENCED
    state = AgentRingState.FENCED if fenced else AgentRingState.STOPPED
    return Run(session=entry.session, state=state, index=entry.index, sure=False)
