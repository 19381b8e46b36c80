# SPDX-License-Identifier: Apache-2.0
"""The data plane of our own: a worker thread in C for each queue pair."""

import errno
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from vhostpci_shared import metadata as md
from vhostpci_shared.metadata import AgentRingState

from ..eventfds import new_eventfd
from ..interfaces import Doorbell, Eventfd, Mmio
from . import native as c
from .interface import Memory, RingRefused, RingReport, RingStart, used_index

_STOP = 0.4
"""Seconds that a worker may take to let go of a ring; it needs microseconds."""

_STATES = {
    c.RingState.STOPPED: AgentRingState.STOPPED,
    c.RingState.RUNNING: AgentRingState.RUNNING,
    c.RingState.BROKEN: AgentRingState.BROKEN,
    c.RingState.FENCED: AgentRingState.FENCED,
}


@dataclass(frozen=True, slots=True)
class _Started:
    ring: md.Ring
    call: Doorbell | None


class RingPlane:
    """Workers on a TAP's descriptors, which stay the caller's.

    Args:
        tap_fds: one for each queue pair.

    Raises:
        OSError: the machine has no thread for a worker.
    """

    def __init__(self, tap_fds: Sequence[int]) -> None:
        self._memory: tuple[Memory, ...] = ()
        self._started: dict[int, _Started] = {}
        self._undo = ExitStack()
        with ExitStack() as undo:
            self._events = new_eventfd()
            undo.callback(os.close, self._events)
            self._workers = [
                undo.enter_context(c.Worker(fd, events_fd=self._events, pair=pair))
                for pair, fd in enumerate(tap_fds)
            ]
            self._undo = undo.pop_all()

    def fileno(self) -> int:
        """Return an eventfd that is readable when a ring broke or was fenced."""
        return self._events

    def set_memory(self, memory: Sequence[Memory]) -> None:
        """Set where the master's memory is; no ring runs."""
        self._memory = tuple(memory)
        regions = [c.MemRegion(m.guest_addr, m.size, m.address) for m in memory]
        for worker in self._workers:
            worker.set_memory(regions)

    def start(self, index: int, start: RingStart) -> None:
        """Start a ring that does not run.

        Raises:
            RingRefused: its entry says what cannot be.
        """
        self._forget(index)
        self._started[index] = _Started(start.ring, start.call)
        try:
            self._workers[index // 2].start(c.RingIndex(index % 2), _conf(index, start))
        except c.RingError as error:
            self._forget(index)
            fenced = error.errno == errno.ESTALE
            state = AgentRingState.FENCED if fenced else AgentRingState.BROKEN
            raise RingRefused(str(error.strerror), state) from None

    def stop(self, index: int) -> int:
        """Stop a ring, and return the used index that was written last.

        Raises:
            TimeoutError: it did not stop; ask again.
        """
        try:
            at = self._workers[index // 2].stop(c.RingIndex(index % 2), _STOP)
        except c.RingError as error:
            if error.errno == errno.ETIMEDOUT:
                raise TimeoutError(str(error)) from None
            raise
        self._forget(index)
        return at

    def _forget(self, index: int) -> None:
        """Close what a ring that has stopped was called with."""
        started = self._started.pop(index, None)
        if started is not None and isinstance(started.call, Eventfd):
            os.close(started.call.fd)

    def report(self, index: int) -> RingReport:
        """Return how a ring stands."""
        worker = index // 2
        if worker >= len(self._workers):
            return RingReport()
        status = self._workers[worker].status(c.RingIndex(index % 2))
        return RingReport(
            state=_STATES[status.state],
            index=self._index(index, status),
            reason=status.reason if status.fault is not c.Fault.NONE else "",
            packets=status.stats.packets,
            octets=status.stats.bytes,
            drops=status.stats.dropped,
            kicks=status.stats.kicks,
            calls=status.stats.calls,
        )

    def _index(self, index: int, status: c.RingStatus) -> int:
        """A worker says where it is only when it stands; else the ring says it."""
        if status.state is c.RingState.RUNNING and index in self._started:
            return used_index(self._started[index].ring, self._memory)
        return status.index

    def close(self) -> None:
        """Stop everything."""
        self._undo.close()
        for index in list(self._started):
            self._forget(index)


def _conf(index: int, start: RingStart) -> c.RingConf:
    """Return what the C ring driver wants to know."""
    options = start.options
    transmits = index % 2 == c.RingIndex.TX
    return c.RingConf(
        desc=start.ring.desc,
        driver=start.ring.driver,
        device=start.ring.device,
        size=start.ring.size,
        base=start.base,
        hdr_len=options.header_length,
        # What the master may send is not bounded by what it takes.
        max_packet=c.MAX_PACKET if transmits else options.max_packet,
        event_idx=options.event_idx,
        indirect=options.indirect,
        mergeable=options.mergeable,
        kick_fd=start.kick,
        call=_call(start.call),
        meta_addr=start.entry,
        session=start.ring.session,
    )


def _call(call: Doorbell | None) -> c.Call | None:
    if isinstance(call, Mmio):
        return c.Doorbell(call.address, call.peer, call.vector)
    return c.Eventfd(call.fd) if call is not None else None
