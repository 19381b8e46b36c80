# SPDX-License-Identifier: Apache-2.0
"""Our own data plane: a worker thread in C for each queue pair."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from vhostpci_shared.metadata import AgentRingState

from ..eventfds import drain, new_eventfd
from ..interfaces import Eventfd
from .capture import Capture
from .cpus import threads_on
from .faults import RingError
from .interface import MemRegion, RingConf, RingRefused, RingStatus
from .native import MAX_PACKET, MAX_THREAD_NAME, RingIndex, Worker
from .ring_features import SERVES

_STOP = 0.4
"""Seconds that a worker may take to stop a ring; it needs microseconds."""


class Workers:
    """A `DataPlane` of workers on a TAP's descriptors, which stay the caller's.

    Args:
        tap_fds: one for each queue pair.
        device: the device's name, for the names of the threads.
        cpus: the processors that the threads may run on; None: any.
        poll: seconds for which a busy worker looks for packets before it sleeps.
        io_uring: whether packets go to the TAP by io_uring, where it can be used.
        confine: whether the threads have only the system calls that they need.

    Raises:
        OSError: the machine has no thread for a worker.
    """

    def __init__(
        self,
        tap_fds: Sequence[int],
        device: str,
        *,
        cpus: frozenset[int] | None = None,
        poll: float = 0.0,
        io_uring: bool = False,
        confine: bool = False,
    ) -> None:
        self._fds: dict[int, list[int]] = {}
        """Calls and kicks, by ring: ours to close once the ring has stopped."""
        self._capture: Capture | None = None
        self._undo = ExitStack()
        with ExitStack() as undo:
            self._events_fd = new_eventfd()
            # Registered before the workers, so closed after them: they write to it.
            undo.callback(os.close, self._events_fd)
            with threads_on(cpus):
                self._workers = [
                    undo.enter_context(
                        Worker(
                            fd,
                            events_fd=self._events_fd,
                            pair=pair,
                            thread=thread_name(device, pair),
                            spin=poll,
                            io_uring=io_uring,
                            confine=confine,
                        )
                    )
                    for pair, fd in enumerate(tap_fds)
                ]
            self._undo = undo.pop_all()

    silent_ticks = 15
    """The threads see the end of a session themselves, and stop then."""
    offers = int(SERVES)
    waiting = ""

    def fileno(self) -> int:
        return self._events_fd

    def look(self) -> bool:
        return drain(self._events_fd)

    def tick(self) -> None:
        """Do nothing: the threads have no time limits of ours."""

    def set_memory(self, regions: Sequence[MemRegion]) -> None:
        for worker in self._workers:
            worker.set_memory(regions)

    def start(self, index: int, conf: RingConf) -> None:
        # Some are left if the ring had stopped by itself and the `stop` after it timed
        # out.
        self._close_fds(index)
        self._fds[index] = list(given(conf))
        pair, ring = _split(index)
        if ring is RingIndex.TX:
            # The acknowledged features bound what the master takes, not what it sends.
            conf = replace(conf, max_packet=MAX_PACKET)
        try:
            self._workers[pair].start(ring, conf)
        except RingError as error:
            self._close_fds(index)
            # ESTALE: the used index is not the base, or the session is another.
            fenced = error.errno == errno.ESTALE
            state = AgentRingState.FENCED if fenced else AgentRingState.BROKEN
            raise RingRefused(str(error.strerror), state, code=error.code) from None

    def stop(self, index: int) -> int:
        pair, ring = _split(index)
        try:
            used = self._workers[pair].stop(ring, _STOP)
        except RingError as error:
            if error.errno == errno.ETIMEDOUT:
                raise TimeoutError(str(error)) from None
            raise
        # Not before the stop has returned: the worker may use them until then.
        self._close_fds(index)
        return used

    def _close_fds(self, index: int) -> None:
        for fd in self._fds.pop(index, ()):
            os.close(fd)

    def status(self, index: int) -> RingStatus:
        pair, ring = _split(index)
        # The metadata of an earlier agent may name rings of pairs that the device had
        # before and has no more.
        if pair >= len(self._workers):
            return RingStatus()
        return self._workers[pair].status(ring)

    def summary(self) -> dict[str, Any]:
        return {}

    @property
    def captures(self) -> bool:
        return self._capture is not None and self._capture.open

    def capture(self, snaplen: int) -> Capture:
        self._capture = Capture(self._workers, snaplen)
        return self._capture

    def close(self) -> None:
        # Each step runs even if another fails.  The last entry runs first: the capture,
        # the threads, and last the eventfds that they write to.
        with ExitStack() as undo:
            for index in self._fds:
                undo.callback(self._close_fds, index)
            undo.callback(self._undo.close)
            if self._capture is not None:
                undo.callback(self._capture.close)


def given(conf: RingConf) -> Iterator[int]:
    """Return the descriptors that a ring's data plane has to close."""
    if isinstance(conf.call, Eventfd):
        yield conf.call.fd
    if conf.owns_kick and conf.kick_fd is not None:
        yield conf.kick_fd


def thread_name(device: str, task: int | str) -> str:
    """Return the name of a thread: the device, maybe cut, and a worker's pair."""
    task_name = f"/{task}".encode()
    # Cut between two characters: the name goes to C in bytes.
    cut = device.encode()[: MAX_THREAD_NAME - len(task_name)]
    return cut.decode("utf-8", "ignore") + task_name.decode()


def _split(index: int) -> tuple[int, RingIndex]:
    """Return the queue pair of a device's ring, and which of its two rings it is."""
    return index // 2, RingIndex(index % 2)
