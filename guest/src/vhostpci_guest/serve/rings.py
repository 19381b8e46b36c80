# SPDX-License-Identifier: Apache-2.0
"""The rings of one device: which run, where they stand, and what runs them.

Here things are done; what is to be done `plan` says, and when, `link`.
"""

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from vhostpci_shared import metadata as md
from vhostpci_shared.access import Metadata
from vhostpci_shared.metadata import AgentRingState, RingFlag
from vhostpci_shared.wire import ProtocolError

from ..dataplane.interface import (
    DataPlane,
    PlaneMaker,
    RingConf,
    RingRefused,
    RingStatus,
    Stats,
    used_index,
)
from ..errors import Unusable
from ..eventfds import drain
from ..interfaces import Device
from ..net_options import NetOptions
from ..tap.tap_port import Port
from . import features
from .plan import NOTHING, Run, Want, base, inherited, place, plan

log = logging.getLogger(__name__)


class Rings:
    """Runs the rings of one device.

    Args:
        device: whose rings they are.
        port: where their packets go.
        make_plane: makes what moves them.
    """

    def __init__(self, device: Device, port: Port, make_plane: PlaneMaker) -> None:
        self.wanted: Want = NOTHING
        """What the daemon wants; no ring runs that it does not."""
        self.waiting = False
        """Whether a ring waits for the peer that it is to call."""
        self.fell = False
        """Whether some ring has stopped by itself; `fallen` says which."""
        self._device = device
        self._port = port
        self._make_plane = make_plane
        self._plane: DataPlane | None = None
        self._queue_pairs = 0  # of the plane
        self._runs: dict[int, Run] = {}
        self._pairs: frozenset[int] = frozenset()  # whose queues the TAP uses

    def inherit(self, metadata: Metadata) -> None:
        """Take note of where the agent before us stood."""
        for index in range(md.MAX_RINGS):
            with suppress(ProtocolError):
                run = inherited(metadata.agent_ring(index))
                if run is not None:
                    self._runs[index] = run

    @property
    def running(self) -> bool:
        """Whether any ring runs."""
        return any(run.state is AgentRingState.RUNNING for run in self._runs.values())

    def fds(self) -> Iterator[int]:
        """Return the descriptor at which rings that stop by themselves are told."""
        if self._plane is not None:
            yield self._plane.fileno()

    def look(self) -> None:
        """See whether a ring has stopped by itself."""
        if self._plane is not None and drain(self._plane.fileno()):
            self.fell = True

    # Stopping.

    def stop_for(self, want: Want) -> bool:
        """Stop the rings that `want` does not let run; return whether they did.

        The TAP's queues of pairs that go are left before anybody hears of it: what
        the kernel put there afterwards would be lost.  Those of pairs that only stop
        for a while keep what they have.
        """
        steps = plan(self.wanted, want, self._runs)
        stopped = [self._stop(index) for index in steps.stop]
        if not all(stopped):
            return False
        with suppress(Unusable):  # the TAP is gone: who needs it next will say so
            self._use_queues(self._pairs & self._pairs_of(want))
        if self._plane is not None and steps.remap:
            self._plane.set_memory(want.memory)
        self.wanted, self.waiting = want, False
        return True

    def _stop(self, index: int) -> bool:
        """Stop a ring; return whether it did."""
        assert self._plane is not None  # what runs the ring
        try:
            at = self._plane.stop(index)
        except TimeoutError:
            log.warning("%s: ring %d does not stop", self._device.name, index)
            return False
        run = self._runs[index]
        self._runs[index] = replace(run, state=AgentRingState.STOPPED, index=at)
        return True

    def fallen(self) -> list[tuple[int, RingStatus]]:
        """Return the rings that have stopped by themselves, each once.

        Raises:
            Unusable: they have because somebody deleted the TAP.
        """
        self.fell = False
        found = []
        for index, run in self._runs.items():
            if run.state is not AgentRingState.RUNNING or self._plane is None:
                continue
            status = self._plane.status(index)
            if status.state is not AgentRingState.RUNNING:
                self._port.check()
                self._runs[index] = replace(run, state=status.state, index=status.index)
                found.append((index, status))
                with suppress(TimeoutError):
                    self._plane.stop(index)
        return found

    # Starting.

    def open(self, device: md.Device) -> None:
        """Have a TAP, and a data plane on it, for as many queue pairs as there are.

        Raises:
            Unusable: the TAP cannot be had.
        """
        if self._plane is not None and self._queue_pairs != device.queue_pairs:
            self._plane.close()
            self._plane = None
        fds = self._port.open(device.queue_pairs, device.name)
        if self._plane is None:
            self._plane = self._make_plane(fds)
            self._queue_pairs = device.queue_pairs
            self._plane.set_memory(self.wanted.memory)

    def start(self) -> list[tuple[int, str]]:
        """Start what is wanted and does not run; return what could not, and why."""
        start = plan(self.wanted, self.wanted, self._runs).start
        self.waiting = False
        if self._plane is None:
            return []
        self._use_queues(self._pairs_of(self.wanted))
        if not start:
            return []
        options = features.options(self.wanted.features, self._port.mtu)
        self._port.set_options(options)
        refused = []
        for index in start:
            try:
                self._start(self._plane, index, options)
            except RingRefused as why:
                self._note(index, why.state)
                refused.append((index, str(why)))
        return refused

    def _pairs_of(self, want: Want) -> frozenset[int]:
        """Return the pairs whose queues are to be used.

        They are as they were where we don't know yet, and where no ring is to run: the
        daemon stops all for a moment when the master's memory changes.
        """
        run = frozenset(i // 2 for i, ring in enumerate(want.rings) if ring.runs)
        return self._pairs if want.absent or not run else run

    def _use_queues(self, pairs: frozenset[int]) -> None:
        self._port.use_queues(pairs)
        self._pairs = pairs

    def _start(self, plane: DataPlane, index: int, options: NetOptions) -> None:
        conf = self._conf(index, self.wanted.rings[index], options)
        if conf is None:
            self.waiting = True
            return
        plane.start(index, conf)
        self._note(index, AgentRingState.RUNNING)

    def _note(self, index: int, state: AgentRingState) -> None:
        ring = self.wanted.rings[index]
        self._runs[index] = Run(session=ring.session, state=state, place=place(ring))

    def _conf(self, index: int, ring: md.Ring, options: NetOptions) -> RingConf | None:
        """Gather what a ring needs; None if the peer it is to call is not there yet."""
        start = base(ring, self._runs.get(index))
        if start is None:
            start = used_index(ring.device, self.wanted.memory)
        call = None
        if ring.flags & RingFlag.CALL:
            call = self._device.doorbell(ring.call_peer, ring.call_vector)
            if call is None:
                return None
        window = self._device.window
        metadata = window.address + window.size - md.SIZE
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
            mergeable=options.mergeable,
            kick_fd=self._device.vector(ring.kick_vector),
            call=call,
            meta_addr=metadata + md.RINGS + index * md.Ring.layout.size,
            session=ring.session,
        )

    # Telling.

    def report(self, metadata: Metadata) -> None:
        """Write into the metadata how the rings stand."""
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
        """Return how the rings stand, as `vhostpci-guest status -j` prints it."""
        return [
            self._status_entry(index, run) for index, run in sorted(self._runs.items())
        ]

    def _status_entry(self, index: int, run: Run) -> dict[str, Any]:
        status = self._status(index, run)
        return {
            "ring": index,
            "session": run.session,
            "state": run.state.name.lower(),
            "index": status.index,
            "reason": status.reason,
            **_counts(status.stats),
        }

    def _status(self, index: int, run: Run) -> RingStatus:
        status = self._plane.status(index) if self._plane else RingStatus()
        if run.state is AgentRingState.RUNNING:
            return status
        return replace(status, index=run.index)

    def close(self) -> None:
        """Let go of the data plane, and with it of all rings."""
        if self._plane is not None:
            self._plane.close()
            self._plane = None
        for index, run in self._runs.items():
            if run.state is AgentRingState.RUNNING:  # it did not stop when asked to
                state = AgentRingState.STOPPED
                self._runs[index] = replace(run, state=state, sure=False)
        self.wanted, self.waiting = NOTHING, False


def _counts(stats: Stats) -> dict[str, int]:
    """Return what both the metadata and the status show of a ring's counts."""
    return {
        "packets": stats.packets,
        "octets": stats.bytes,
        "drops": stats.dropped,
        "kicks": stats.kicks,
        "calls": stats.calls,
    }
