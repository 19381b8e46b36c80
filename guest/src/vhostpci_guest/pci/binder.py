# SPDX-License-Identifier: Apache-2.0
"""The thread that binds PCI devices and gives them back.

Theory of operation.  To bind a device may take seconds: modprobe loads a module, and
the driver may reset the device.  To give one back may, too.  The agent's loop must not
wait for that, since it answers the quiesce of every other device, and a whole master VM
stands still until its quiesce is answered.

So these two jobs run on one thread, one after the other, and the loop takes the
results when the binder's descriptor is readable.  Ownership is handed over, so there
is no lock:

* the loop puts a job into a queue, and from then on leaves what the job works on
  alone, but for `PciDevice.going`, a flag that the loop only ever sets and the thread
  only reads;
* the thread puts the job with its result into another queue, and is done with it.

One thread is enough, and its order is relied upon: a device that is given back and
bound again is first given back.

What a job calls must not depend on its thread.  sysfs, flock() on a descriptor of the
job's own, mmap() and ioctl() do not; subprocess may be used on any thread; the table
of guarded mappings has a lock in C (shared/memory/guard.c).  pyudev and netlink are
used by the loop only.  Signals arrive at the main thread, as always in Python.
"""

import logging
import os
import select
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from ..eventfds import drain, new_eventfd, signal

log = logging.getLogger(__name__)

STUCK = 30.0
"""Seconds that `close` waits for one job; systemd kills a service after 90."""

_T = TypeVar("_T")


@dataclass(eq=False, slots=True)
class _Job:
    name: str
    work: Callable[[], Any]
    then: Callable[[Future[Any]], None]
    outcome: Future[Any] = field(default_factory=Future)


class Binder:
    """Runs jobs one after the other on a thread, and delivers their results.

    Args:
        stuck: seconds that `close` waits for one job.
    """

    def __init__(self, stuck: float = STUCK) -> None:
        self._stuck = stuck
        self._todo: SimpleQueue[_Job | None] = SimpleQueue()
        self._done: SimpleQueue[_Job] = SimpleQueue()
        self._pending: list[_Job] = []  # the loop's own; the thread has no part in it
        self._eventfd = new_eventfd()
        # A daemon thread: a job that hangs in the kernel must not keep the process.
        self._thread = Thread(target=self._run, name="binder", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        """Return a descriptor that is readable when there are results."""
        return self._eventfd

    @property
    def pending(self) -> int:
        """How many jobs have not delivered their result yet."""
        return len(self._pending)

    def submit(
        self,
        name: str,
        work: Callable[[], _T],
        then: Callable[[Future[_T]], None],
    ) -> None:
        """Run `work` on the thread; `deliver` calls `then` with what came of it.

        Args:
            name: what the job does, for the log.
            work: runs on the thread; an exception of it is in the result.
            then: runs where `deliver` is called.
        """
        job = _Job(name, work, then)
        self._pending.append(job)
        self._todo.put(job)

    def deliver(self) -> None:
        """Call `then` of each job that is finished."""
        # Drained before the queue is read: a job that finishes in between signals
        # again, and wakes the loop once too often rather than once too seldom.
        drain(self._eventfd)
        while True:
            try:
                job = self._done.get_nowait()
            except Empty:
                return
            self._pending.remove(job)
            job.then(job.outcome)

    def close(self) -> None:
        """Finish all jobs, those that `then` submits as well, and end the thread.

        A job that takes longer than `stuck` seconds is left behind.
        """
        while self._pending:
            # The queue first: an exception of an earlier `then` may have left results
            # in it, of which the eventfd says nothing any more.
            if self._done.empty() and not _readable(self._eventfd, self._stuck):
                # The eventfd stays open: the thread may still write to it, and must
                # not find another file under its number.
                log.warning(
                    "%s is not finished after %g s; ending without it",
                    self._pending[0].name,
                    self._stuck,
                )
                return
            self.deliver()
        self._todo.put(None)
        self._thread.join()
        os.close(self._eventfd)

    def _run(self) -> None:
        while (job := self._todo.get()) is not None:
            try:
                job.outcome.set_result(job.work())
            except BaseException as error:  # the loop raises it, or handles it
                job.outcome.set_exception(error)
            # In this order: who wakes from the eventfd finds the result.
            self._done.put(job)
            signal(self._eventfd)


def _readable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
