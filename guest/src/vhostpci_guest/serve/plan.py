# SPDX-License-Identifier: Apache-2.0
"""Decides which rings to stop and to start when the metadata changes.

Theory of operation.  All functions here are pure.  `check` turns a snapshot, which may
hold anything, into a `Want`: memory that lies inside our windows, and rings.  `plan`
compares it with the state of each ring (`Run`), and returns which rings to stop and
which to start::

                      wanted: no, another session, or another place
        +-----------------------------------------------+
        v                                               |
    STOPPED ---- wanted, and not FENCED or BROKEN ---> RUNNING
      (IDLE)     in this very session                   |  |
                                                        |  +-> BROKEN   by the master
                                                        +----> FENCED   by another

All rings use the memory and the features, so a change of either stops all rings first.
While a window that the metadata names is absent, there is no memory and no ring runs.

A ring continues where it stopped if its session is the same, and starts at the daemon's
`base` in a new session.  In two cases we read the used index from the ring instead: an
earlier agent process ran it in this session (`Run.index_known`), or the session has no
base (RESUME), since an agent may have worked the ring when the session began.

A packed ring has no used index.  It goes on at the position that stands in the metadata
if that is about the ring's `origin`, and starts at `base` if not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from vhostpci_shared import metadata as md
from vhostpci_shared.metadata import AgentRingState, DeviceFlag, RingFlag
from vhostpci_shared.position import Position
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
    kept: bool = False
    """Whether the front-end leaves the rings alone when its daemon has died."""
    absent: tuple[int, ...] = ()
    """IDs of windows that are named and not there; no ring runs until they are."""


NOTHING = Want()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The state of one ring in this agent.

    `place` is what `place()` returned when the ring started; `index` is the used index
    where it stopped, and `index_known` whether this process has seen that itself;
    `features` are those that the driver had acknowledged when it started.
    """

    session: int
    state: AgentRingState
    place: tuple[int, ...] = ()
    index: int = 0
    index_known: bool = True
    features: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Rings to stop, whether the memory changed, rings to start; in this order."""

    stop: tuple[int, ...]
    remap: bool
    start: tuple[int, ...]


def check(snapshot: md.Snapshot, windows: Mapping[int, Window], vectors: int) -> Want:
    """Return what a snapshot asks for, after checking that we may do it.

    Args:
        snapshot: what the daemon says.
        windows: those that are there, by ID.
        vectors: number of MSI-X vectors of our device.

    Raises:
        Unusable: our device has too few vectors.
        ProtocolError: it names memory outside of our windows, overlapping memory, a
            vector that we don't have, or a ring layout that we don't serve.
    """
    device = snapshot.device
    if vectors < device.vectors:
        raise Unusable(
            f"the device has {vectors} MSI-X vectors, and needs {device.vectors} for "
            f"{device.queue_pairs} queue pair(s): start the slave's QEMU with "
            f"`-device ivshmem-doorbell,vectors={device.vectors},...`",
            code="G099",
        )
    for index, ring in enumerate(snapshot.rings):
        if ring.runs and not ring.kick_peer and ring.kick_vector >= vectors:
            raise ProtocolError(
                f"ring {index} kicks vector {ring.kick_vector}", code="P068"
            )
    _check_overlap(snapshot.regions)
    _check_numbers(snapshot)
    want = Want(
        features=device.features,
        queue_pairs=device.queue_pairs,
        master=bool(device.flags & DeviceFlag.MASTER),
        kept=bool(device.flags & DeviceFlag.KEPT),
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
    """Refuse window IDs that no daemon assigns, as such a window never appears."""
    for number in named(snapshot):
        if not md.FIRST_WINDOW <= number <= md.LAST_WINDOW:
            raise ProtocolError(
                f"the master's memory is in window {number}, which is neither "
                f"{md.SLAVE_ID} nor from {md.FIRST_WINDOW} to {md.LAST_WINDOW}",
                code="P069",
            )


def _check_overlap(regions: Sequence[md.Region]) -> None:
    """Refuse regions that share guest addresses: a buffer would be in two places."""
    ordered = sorted(regions, key=lambda region: region.guest_addr)
    for low, high in pairwise(ordered):
        if high.guest_addr - low.guest_addr < low.size:
            raise ProtocolError(f"regions overlap: {low} and {high}", code="P070")


def _locate(region: md.Region, windows: Mapping[int, Window]) -> MemRegion:
    """Find a region in its window, outside the metadata."""
    window = windows[region.window]
    # The metadata is at the end of window 0.  A region there would let the master's
    # driver write what the daemon says.
    room = window.size - (md.SIZE if window.id == md.SLAVE_ID else 0)
    if region.offset > room or region.size > room - region.offset:
        raise ProtocolError(
            f"region of {region.size:#x} bytes at {region.offset:#x} does not fit "
            f"window {window.id}, which has {room:#x} for it",
            code="P071",
        )
    file = window.file
    return MemRegion(
        guest_addr=region.guest_addr,
        size=region.size,
        host_addr=window.address + region.offset,
        file=file,
        offset=file.offset + region.offset if file else 0,
        no_file=window.no_file,
    )


def place(ring: md.Ring) -> tuple[int, ...]:
    """Return the part of a ring's entry whose change needs a restart of the ring.

    `base` and RESUME are not in it: they only say where the ring starts.
    """
    return (
        ring.session,
        int(ring.flags & (RingFlag.CALL | RingFlag.PACKED | RingFlag.POLL)),
        ring.size,
        ring.desc,
        ring.driver,
        ring.device,
        ring.kick_vector,
        ring.call_peer,
        ring.call_vector,
        ring.kick_peer,
    )


def is_packed(run: Run) -> bool:
    """Whether a ring that this agent has run is packed."""
    return len(run.place) > 1 and bool(run.place[1] & RingFlag.PACKED)


def stands(run: Run) -> Position | None:
    """Return where a ring that was stopped goes on, for another daemon's metadata.

    None if it is not packed, or if it did not stop because it was asked to.
    """
    asked = run.state is AgentRingState.STOPPED and run.index_known
    if not (asked and is_packed(run)):
        return None
    _, _, size, desc, driver, device = run.place[:6]
    return Position(
        # Of no ring of the next daemon: that decides, and gives the ring a base.
        origin=run.session,
        desc=desc,
        driver=driver,
        device=device,
        size=size,
        at=run.index,
        next=run.index,
    )


def plan(now: Want, new: Want, runs: Mapping[int, Run]) -> Plan:
    """Return the steps from what was wanted, `now`, to what is wanted, `new`."""
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
    """Whether a running ring may continue as it is."""
    return index < len(rings) and rings[index].runs and run.place == place(rings[index])


def _may_start(ring: md.Ring, run: Run | None) -> bool:
    """Whether a ring that does not run may start."""
    # FENCED and BROKEN hold for the session: only the daemon knows when the other
    # back-end is gone or the driver was reset, and it starts a new session then.
    if run is None or run.session != ring.session:
        return True
    return run.state in (AgentRingState.IDLE, AgentRingState.STOPPED)


def base(ring: md.Ring, run: Run | None) -> int | None:
    """Return the index where a ring starts; None: at the used index in memory."""
    if run is not None and run.session == ring.session:
        return run.index if run.index_known else None
    return None if ring.flags & RingFlag.RESUME else ring.base


def inherited(entry: md.AgentRing) -> Run | None:
    """Return the state of a ring that an earlier agent process ran; None if it did not.

    A BROKEN ring may be tried again.
    """
    if entry.state is AgentRingState.IDLE:
        return None
    # A fenced ring stays fenced.  Its start index would be read from the ring, so the
    # check of base against the used index could not fail, and two back-ends would run.
    fenced = entry.state is AgentRingState.FENCED
    state = AgentRingState.FENCED if fenced else AgentRingState.STOPPED
    return Run(session=entry.session, state=state, index=entry.index, index_known=False)


def goes_on(ring: md.Ring, run: Run | None, start: int, features: int) -> bool:
    """Whether the driver that `run` served goes on at index `start`; else it is new.

    A driver's rings stop and start again, in a new session, when the master's memory
    changes.  They are then where they were, and go on where they stopped.  A driver
    that was loaded again begins at 0.

    A ring that another agent has moved counts as a new driver's: meanwhile the driver
    may have been loaded again, or the master been replaced.  What waits in our TAP has
    waited as long as the other agent served, and losing it costs less than giving it to
    another machine.

    Args:
        ring: its entry now.
        run: the ring as it ran before in this agent, with the same master connected.
        start: where it starts.
        features: what the driver acknowledged.
    """
    if run is None or not run.index_known or run.features != features:
        return False
    layout = (ring.size, ring.desc, ring.driver, ring.device)
    # If the ring stopped at 0, a new driver looks the same; it is one of the same
    # machine, and takes the same packets.
    return run.place[2:6] == layout and run.index == start
