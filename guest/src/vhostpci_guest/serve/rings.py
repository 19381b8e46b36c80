# SPDX-License-Identifier: Apache-2.0
"""The rings of one device: starts and stops them, and knows the state of each.

`plan` decides which rings to stop and to start, `link` decides when.
"""

import logging
import os
import select
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from ctypes import string_at
from dataclasses import asdict, replace
from typing import Any

from vhostpci_shared import metadata as md
from vhostpci_shared.access import Metadata
from vhostpci_shared.errors import code_of, said
from vhostpci_shared.metadata import AgentRingState, RingFlag
from vhostpci_shared.position import Position
from vhostpci_shared.virtio import INDEXES, Feature, lacking
from vhostpci_shared.wire import ProtocolError

from ..dataplane.faults import Fault
from ..dataplane.interface import (
    DataPlane,
    Port,
    RingConf,
    RingRefused,
    RingStatus,
    Stats,
    Stopping,
    avail_index,
    check_base,
    position,
    used_index,
)
from ..dataplane.ring_features import SERVES
from ..errors import Unusable
from ..interfaces import Call, Device, Eventfd
from ..net_options import NetOptions
from . import features
from .heartbeat import SILENT_TICKS
from .plan import (
    NOTHING,
    Run,
    Want,
    base,
    goes_on,
    inherited,
    is_packed,
    place,
    plan,
    stands,
)
from .retries import Retries

log = logging.getLogger(__name__)

_END = 0.6
"""Seconds that the rings may take to stop when the agent ends."""
_MAY_PASS = (Fault.TAP, Fault.MEMORY)
"""Faults that neither the master's driver nor its daemon can do anything about."""


class Rings:
    """Runs the rings of one device.

    Args:
        device: whose rings they are.
        port: where their packets go.
    """

    def __init__(self, device: Device, port: Port) -> None:
        self.wanted: Want = NOTHING
        """What the daemon wants: no other ring runs."""
        self.waiting_for_peer = False
        """Whether a ring has not started because its call peer is not there yet."""
        self.some_stopped = False
        """Whether a ring has stopped by itself; `take_stopped` returns which."""
        self._device = device
        self._port = port
        self._plane: DataPlane | None = None
        self._queue_pairs = 0  # that the plane was made for
        self._runs: dict[int, Run] = {}
        self._stopping: set[int] = set()
        """Rings that were told to stop, and have not stopped yet."""
        self._retries = Retries()
        self._served: set[int] = set()
        """Rings that have run for the master that is connected now."""
        self._used_pairs: frozenset[int] = frozenset()
        """Queue pairs whose TAP queues the kernel may put packets into."""

    def take_over(self, metadata: Metadata) -> None:
        """Read from the metadata where an earlier agent process left the rings."""
        for index in range(md.MAX_RINGS):
            with suppress(ProtocolError):  # it wrote nonsense: as if it never ran
                run = inherited(metadata.agent_ring(index))
                if run is not None:
                    self._runs[index] = run

    @property
    def plane(self) -> DataPlane | None:
        """The data plane; None if there is none now."""
        return self._plane

    @property
    def running(self) -> bool:
        """Whether any ring runs."""
        return any(run.state is AgentRingState.RUNNING for run in self._runs.values())

    @property
    def any_wanted(self) -> bool:
        """Whether the daemon wants any ring to run."""
        return any(ring.runs for ring in self.wanted.rings)

    @property
    def blocked(self) -> bool:
        """Whether a wanted receive ring has stopped by itself, and takes no packets.

        Not one that was fenced: the daemon gives it to us again within a second.
        """
        return any(
            ring.runs and index % 2 == 0 and self._blocked(index, ring)
            for index, ring in enumerate(self.wanted.rings)
        )

    def _blocked(self, index: int, ring: md.Ring) -> bool:
        run = self._runs.get(index)
        if run is None or run.session != ring.session:
            return False
        waits = self._retries.waits(index, ring.session)
        return waits or run.state is AgentRingState.BROKEN

    @property
    def obstacle(self) -> str:
        """Why the data plane can start no ring now; else empty."""
        return self._plane.waiting if self._plane is not None else ""

    @property
    def offers(self) -> int | None:
        """The virtio features that the data plane can serve; None: not known."""
        return self._plane.offers if self._plane is not None else None

    @property
    def lacking(self) -> Feature:
        """What the master's driver has acknowledged, and the data plane cannot do."""
        offers = self.offers
        if offers is None:
            return Feature(0)
        # Of the others, as the MAC address, the master's front-end takes care.
        return lacking(self.wanted.features & SERVES, offers)

    @property
    def silent_ticks(self) -> int:
        """Ticks without a beat of the daemon's after which no ring may run."""
        # A front-end whose connection is kept does not use the rings meanwhile.
        if self._plane is None or self.wanted.kept:
            return SILENT_TICKS
        return self._plane.silent_ticks

    def summary(self) -> dict[str, Any]:
        """Return what `vhostpci-guest status -j` says of the data plane."""
        return self._plane.summary() if self._plane is not None else {}

    def fds(self) -> Iterator[int]:
        """Return the descriptor at which something of the data plane's happens."""
        if self._plane is not None:
            yield self._plane.fileno()

    def look(self) -> None:
        """Look at the data plane; note in `some_stopped` whether a ring has stopped."""
        if self._plane is not None and self._plane.look():
            self.some_stopped = True

    # Stopping.

    def stop_for(self, want: Want) -> bool:
        """Stop the rings that `want` does not allow; return whether all have stopped.

        If not, the caller asks again, for the same or for what is wanted by then.
        """
        steps = plan(self.wanted, want, self._runs)
        # Before the rings stop: what the kernel puts into a queue after that is lost.
        with suppress(Unusable):  # the TAP is gone: its next user reports that
            self._use_queues(self._used_pairs & self._pairs_of(want))
        # A ring that was told to stop cannot go on, even if it is wanted again by now.
        stopped = [self._stop(index) for index in {*steps.stop, *self._stopping}]
        if not all(stopped):
            return False
        # Only now: all rings use the memory, and `plan` has stopped all of them.
        if self._plane is not None and steps.remap:
            self._plane.set_memory(want.memory)
        self.wanted, self.waiting_for_peer = want, False
        if not want.master:
            self._served.clear()
        return True

    def _stop(self, index: int) -> bool:
        """Stop a ring; return whether it has stopped."""
        assert self._plane is not None  # a ring that runs has a plane
        try:
            at = self._plane.stop(index)
        except Stopping:
            self._stopping.add(index)
            return False
        except TimeoutError:
            log.warning(
                "%s: ring %d does not stop, trying again", self._device.name, index
            )
            return False
        self._stopping.discard(index)
        run = self._runs[index]
        self._runs[index] = replace(run, state=AgentRingState.STOPPED, index=at)
        return True

    def take_stopped(self) -> list[tuple[int, RingStatus]]:
        """Return the rings that have stopped by themselves; each is returned once.

        A ring that failed, and that `tick` has started again, is STOPPED, not BROKEN:
        the daemon would say that the master's driver broke it.  It is returned at its
        first failure in a row.

        Raises:
            Unusable: they stopped because the TAP was deleted.
        """
        self.some_stopped = False
        found = []
        for index, run in self._runs.items():
            if run.state is not AgentRingState.RUNNING or self._plane is None:
                continue
            if index in self._stopping:
                continue  # not by itself: `stop_for` takes its index
            status = self._plane.status(index)
            if status.state is not AgentRingState.RUNNING:
                # A TAP that was deleted looks to the worker like a broken ring.  It is
                # not the master's fault, so the ring is not reported as BROKEN.
                self._port.check()
                first = True
                if status.fault in _MAY_PASS:
                    status = replace(status, state=AgentRingState.STOPPED)
                    first = self._retries.failed(index, run.session)
                self._runs[index] = replace(
                    run,
                    state=status.state,
                    index=status.index,
                    index_known=status.index_known,
                )
                if first:
                    found.append((index, status))
                with suppress(TimeoutError):  # the worker has stopped it already
                    self._plane.stop(index)  # closes its call eventfd
        return found

    def positions(self) -> dict[int, Position | None]:
        """Return where the rings that have run go on; None of one that is not packed.

        The caller has stopped them.
        """
        return {index: stands(run) for index, run in self._runs.items()}

    # Starting.

    def open(self, device: md.Device) -> None:
        """Make the port and the data plane for the device's queue pairs, if need be.

        Raises:
            Unusable: the port cannot be made or attached to.
        """
        if self._plane is not None and self._queue_pairs != device.queue_pairs:
            self._plane.close()
            self._plane = None
        self._port.open(device.queue_pairs, device.name)
        if self._plane is None:
            self._plane = self._port.make_plane(device.name)
            self._queue_pairs = device.queue_pairs
            self._plane.set_memory(self.wanted.memory)

    def start(self) -> list[tuple[int, str]]:
        """Start the wanted rings that do not run; return those refused, and why."""
        start = [
            index
            for index in plan(self.wanted, self.wanted, self._runs).start
            if not self._retries.waits(index, self.wanted.rings[index].session)
        ]
        self.waiting_for_peer = False
        if self._plane is None or self.obstacle or self.lacking:
            return []
        refused = self._start_all(self._plane, start) if start else []
        # Not before: a ring of a new driver starts with an empty queue.
        self._use_queues(self._pairs_to_use())
        return refused

    def _start_all(
        self, plane: DataPlane, indexes: Sequence[int]
    ) -> list[tuple[int, str]]:
        """Start these rings; return those refused, and why."""
        options = features.options(self.wanted.features)
        # Before a queue is emptied: a packet that comes after that is one that the
        # driver takes, for instance with its checksum.
        self._port.set_options(options)
        refused: list[tuple[int, str]] = []
        for index in indexes:
            try:
                self._start(plane, index, options)
            except RingRefused as why:
                self._set_state(index, why.state)
                refused.append((index, said(why)))
        return refused

    def tick(self) -> bool:
        """Count a tick; return whether the pause of a failed ring is over."""
        if self._plane is not None:
            self._plane.tick()
        self._retries.tick()
        return self._retries.due

    def _pairs_of(self, want: Want) -> frozenset[int]:
        """Return the queue pairs whose TAP queues the kernel shall use."""
        # Unchanged while a window is absent or no ring is to run: the daemon stops all
        # rings for a moment when the master's memory changes, and a queue that the
        # kernel detaches loses its packets.
        run = frozenset(i // 2 for i, ring in enumerate(want.rings) if ring.runs)
        return self._used_pairs if want.absent or not run else run

    def _pairs_to_use(self) -> frozenset[int]:
        """Return the wanted pairs that read from their queue now, or used it before."""
        wanted = self._pairs_of(self.wanted)
        return frozenset(
            pair for pair in wanted if pair in self._used_pairs or self._reads(pair)
        )

    def _reads(self, pair: int) -> bool:
        """Whether a pair's receive ring runs, which takes packets from its queue."""
        run = self._runs.get(2 * pair)
        return run is not None and run.state is AgentRingState.RUNNING

    def _use_queues(self, pairs: frozenset[int]) -> None:
        self._port.use_queues(pairs)
        self._used_pairs = pairs

    def _start(self, plane: DataPlane, index: int, options: NetOptions) -> None:
        ring = self.wanted.rings[index]
        start = self._start_of(index, ring)
        run = self._runs.get(index) if index in self._served else None
        if index % 2 == 0 and not goes_on(ring, run, start, self.wanted.features):
            # What waits there was for another driver, maybe of another machine.
            self._port.discard(index // 2)
        conf = self._conf(index, ring, start, options)
        if conf is None:
            # The peer is a set of the master's call eventfds, which QEMU may pass on
            # after the metadata has changed.
            self.waiting_for_peer = True
            return
        plane.start(index, conf)
        if ring.flags & RingFlag.CALL:
            # The ring may have been used before, by a worker that rang the doorbell of
            # an earlier call (QEMU gives a new one when the guest masks the interrupt),
            # or that was killed before it rang any.  The master's driver would wait for
            # an interrupt that never comes; one too many is harmless.
            self._device.ring(ring.call_peer, ring.call_vector)
        self._set_state(index, AgentRingState.RUNNING)
        self._served.add(index)

    def _start_of(self, index: int, ring: md.Ring) -> int:
        """Return the used index, or the position, where a ring starts."""
        memory = self.wanted.memory
        if ring.flags & RingFlag.PACKED:
            return position(self._left_by_agent(index, ring), ring, memory)
        start = base(ring, self._runs.get(index))
        if start is None:
            # Read once: a second look could find another index, as this is the
            # master's memory.
            return used_index(ring.device, memory)
        check_base(start, ring.device, memory)
        return start

    def _left_by_agent(self, index: int, ring: md.Ring) -> Position | None:
        """Return where an agent has left a packed ring since its base was set."""
        address = self._position_address(index)
        entry = Position.parse(string_at(address, Position.layout.size))
        # What it says of another ring could lie outside of this one.
        same = entry.place == (ring.desc, ring.driver, ring.device, ring.size)
        return entry if entry.valid and same and entry.origin == ring.origin else None

    def _metadata_address(self) -> int:
        window = self._device.window
        return window.address + window.size - md.SIZE

    def _position_address(self, index: int) -> int:
        return self._metadata_address() + md.POSITIONS + index * Position.layout.size

    def _set_state(self, index: int, state: AgentRingState) -> None:
        ring = self.wanted.rings[index]
        self._runs[index] = Run(
            session=ring.session,
            state=state,
            place=place(ring),
            features=self.wanted.features,
        )

    def _conf(
        self, index: int, ring: md.Ring, start: int, options: NetOptions
    ) -> RingConf | None:
        """Return what a ring needs; None if its call peer is not there yet.

        Raises:
            RingRefused: its kick is no eventfd of this device's.
        """
        signals = self._kick_and_call(ring)
        if signals is None:
            return None
        kick, call = signals
        entry = md.RINGS + index * md.Ring.layout.size
        packed = bool(ring.flags & RingFlag.PACKED)
        return RingConf(
            desc=ring.desc,
            driver=ring.driver,
            device=ring.device,
            size=ring.size,
            base=start,
            hdr_len=options.hdr_len,
            max_packet=options.max_packet,
            features=self.wanted.features,
            event_idx=options.event_idx,
            indirect=options.indirect,
            in_order=options.in_order,
            mergeable=options.mergeable,
            packed=packed,
            segment_udp=options.udp_segments and not self._port.takes_uso,
            kick_fd=kick,
            owns_kick=bool(ring.kick_peer),
            call=call,
            meta_addr=self._metadata_address() + entry,
            session=ring.session,
            position_addr=self._position_address(index) if packed else 0,
            origin=ring.origin,
        )

    def _kick_and_call(self, ring: md.Ring) -> tuple[int | None, Call | None] | None:
        """Return a ring's kick and call; None if a peer is not there yet.

        Raises:
            RingRefused: the kick is no eventfd of this device's.
        """
        call = kick = None
        with ExitStack() as undo:
            if ring.flags & RingFlag.CALL:
                call = self._device.doorbell(ring.call_peer, ring.call_vector)
                if call is None:
                    return None
                undo.callback(_close, call)
            # Else its vector stays silent, and the worker would sleep until a signal.
            if not ring.flags & RingFlag.POLL:
                kick = (
                    self._peer_kick(ring)
                    if ring.kick_peer
                    else self._device.vector(ring.kick_vector)
                )
                if kick is None and ring.kick_peer:
                    return None
            undo.pop_all()
        return kick, call

    def _peer_kick(self, ring: md.Ring) -> int | None:
        """Return the kick that a peer has brought; None if it is not there yet.

        Raises:
            RingRefused: it is no eventfd.
        """
        kick = self._device.doorbell(ring.kick_peer, ring.kick_vector)
        if kick is None:
            return None
        if isinstance(kick, Eventfd):
            return kick.fd
        raise RingRefused(
            f"its kick is vector {ring.kick_vector} of peer {ring.kick_peer}, and the "
            "device has no eventfds of its peers",
            code="R041",
        )

    # Status.

    def write_status(self, metadata: Metadata) -> None:
        """Write the agent's entry of each ring into the metadata."""
        for index, run in self._runs.items():
            status = self._status(index, run)
            entry = md.AgentRing(
                session=run.session,
                state=run.state,
                index=status.index,
                **_counts(status.stats),
            )
            metadata.write_agent_ring(index, entry)

    def status(self) -> list[dict[str, Any]]:
        """Return the rings' state as `vhostpci-guest status -j` prints it."""
        return [
            self._status_entry(index, run) for index, run in sorted(self._runs.items())
        ]

    def _status_entry(self, index: int, run: Run) -> dict[str, Any]:
        status = self._status(index, run)
        return {
            "ring": index,
            "session": run.session,
            "state": run.state.name.lower(),
            "format": "packed" if is_packed(run) else "split",
            "index": status.index,
            "size": self._size(index),
            "fill": self._fill(index, run),
            "reason": status.reason,
            "code": code_of(status.reason),
            "method": status.method,
            "method_reason": status.method_reason,
            **_counts(status.stats),
            "stats": asdict(status.stats),
        }

    def _size(self, index: int) -> int:
        """Return how many entries a ring has; 0 if the daemon names it no more."""
        rings = self.wanted.rings
        return rings[index].size if index < len(rings) else 0

    def _fill(self, index: int, run: Run) -> int | None:
        """Return how many chains the driver offers that are not used yet.

        None of a ring that does not run, of a packed one, which has no such index, and
        of one whose driver writes what cannot be.
        """
        if run.state is not AgentRingState.RUNNING or is_packed(run):
            return None
        ring, memory = self.wanted.rings[index], self.wanted.memory
        try:
            waiting = avail_index(ring.driver, memory) - used_index(ring.device, memory)
        except RingRefused:
            return None
        waiting %= INDEXES
        return waiting if waiting <= ring.size else None

    def _status(self, index: int, run: Run) -> RingStatus:
        status = self._plane.status(index) if self._plane else RingStatus()
        if run.state is AgentRingState.RUNNING:
            return status
        return replace(status, index=run.index)

    def finish(self) -> None:
        """Stop all rings, and wait until they have stopped, `_END` seconds at most."""
        end = time.monotonic() + _END
        while not self.stop_for(NOTHING) and time.monotonic() < end:
            # Not select(), which takes no descriptor above 1023.
            poll = select.poll()
            for fd in self.fds():  # a ring that has stopped has none
                poll.register(fd, select.POLLIN)
            poll.poll(10)
            self.look()

    def close(self) -> None:
        """Close the data plane, which stops all rings."""
        self._stopping.clear()
        if self._plane is not None:
            self._plane.close()
            self._plane = None
        for index, run in self._runs.items():
            if run.state is AgentRingState.RUNNING:
                # It did not stop when asked to, so we don't know its last index.
                state = AgentRingState.STOPPED
                self._runs[index] = replace(run, state=state, index_known=False)
        self.wanted, self.waiting_for_peer = NOTHING, False


def _close(call: Call | None) -> None:
    """Close a doorbell that no ring will have."""
    if isinstance(call, Eventfd):
        os.close(call.fd)


def _counts(stats: Stats) -> dict[str, int]:
    """Return what both the metadata and the status show of a ring's counts."""
    return {
        "packets": stats.packets,
        "octets": stats.bytes,
        "drops": stats.dropped,
        "kicks": stats.kicks,
        "calls": stats.calls,
    }
