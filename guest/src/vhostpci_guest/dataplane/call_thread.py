# SPDX-License-Identifier: Apache-2.0
"""The thread that passes a foreign back-end's calls on to the master.

A back-end that is not ours signals an eventfd to call the master.  If the way to the
master is an eventfd as well, the back-end has that one.  If the kernel can ring the
doorbell (a tie), it does.  Else the thread of `guest/ring/calls.c` waits for the
back-end's signals, and rings the doorbell.
"""

import os
import stat
from contextlib import ExitStack
from dataclasses import dataclass

from ..eventfds import new_eventfd
from ..interfaces import Call, Doorbell, Eventfd, Tie
from .native import Calls, CallsConf
from .workers import thread_name

POLL_MIN, POLL_MAX = 100e-6, 5e-3
"""Seconds between two looks at a ring that moves, and at one that does not, where the
binding has no interrupts; as a worker's, but for the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RingSignals:
    """What a foreign back-end has for a ring: eventfds to wait at and to signal."""

    kick_fd: int
    """When it is readable, the back-end is to look at the ring."""
    call_fd: int | None
    """What the back-end signals; None: it makes no calls."""
    counted: bool
    """Whether we know how often it calls."""


class CallThread:
    """The eventfds of a device's rings, and the thread, which starts when it is needed.

    Args:
        device: the device's name, for the name of the thread.
        confine: whether the thread has only the system calls that it needs.
    """

    def __init__(self, device: str, *, confine: bool) -> None:
        self._name = thread_name(device, "call")
        self._confine = confine
        self._calls: Calls | None = None
        self._fds: dict[int, list[int]] = {}
        """Eventfds that were made for a ring, or came with its call."""
        self._ties: dict[int, Tie] = {}
        """The rings whose calls the kernel passes on."""

    def add(
        self,
        index: int,
        *,
        kick_fd: int | None,
        call: Call | None,
        owns_kick: bool = False,
        avail_idx_addr: int = 0,
    ) -> RingSignals:
        """Return a ring's eventfds for the back-end; undone by `remove`.

        Args:
            index: number of the ring.
            kick_fd: its kick; None: the binding has no interrupts, so the thread makes
                kicks.
            call: its call, which is ours from now on, also if this fails.
            owns_kick: whether the kick is ours, too.
            avail_idx_addr: where the ring's avail idx is mapped, until `remove`; 0: the
                thread does not know whether the driver has moved on.

        Raises:
            OSError: the machine has no thread or no eventfd left.
        """
        assert index not in self._fds
        fds = self._fds[index] = []
        if isinstance(call, Eventfd):
            fds.append(call.fd)
        if owns_kick and kick_fd is not None:
            fds.append(kick_fd)
        try:
            return self._add(index, fds, kick_fd, call, avail_idx_addr)
        except BaseException:
            self.remove(index)
            raise

    def _add(
        self,
        index: int,
        fds: list[int],
        kick_fd: int | None,
        call: Call | None,
        avail_idx_addr: int,
    ) -> RingSignals:
        polled = kick_fd is None
        if kick_fd is None:
            kick_fd = _made(fds)
        call_fd: int | None = None
        way = call
        if isinstance(call, Eventfd) and not _is_socket(call.fd):
            call_fd, way = call.fd, None
        elif call is not None:
            call_fd = _made(fds)
            if self._tied(index, call_fd, call):
                way = None
        if polled or way is not None:
            doorbell = way if isinstance(way, Doorbell) else None
            conf = CallsConf(
                call_fd=-1 if way is None or call_fd is None else call_fd,
                out_fd=way.fd if isinstance(way, Eventfd) else -1,
                call_addr=doorbell.host_addr if doorbell else 0,
                call_value=doorbell.value if doorbell else 0,
                kick_fd=kick_fd if polled else -1,
                avail_idx_addr=avail_idx_addr,
            )
            self._thread().add(index, conf)
        return RingSignals(kick_fd=kick_fd, call_fd=call_fd, counted=way is not None)

    def _tied(self, index: int, call_fd: int, call: Call) -> bool:
        """Let the kernel pass a ring's calls on, if it can; return whether it does."""
        if not isinstance(call, Doorbell) or call.ties is None:
            return False
        tie = call.ties.tie(call_fd, call.peer, call.vector)
        if tie is not None:
            self._ties[index] = tie
        return tie is not None

    def _thread(self) -> Calls:
        if self._calls is None:
            self._calls = Calls(
                self._name,
                confine=self._confine,
                poll_min=POLL_MIN,
                poll_max=POLL_MAX,
            )
        return self._calls

    def remove(self, index: int) -> None:
        """Close what a ring has; the caller has stopped the back-end.

        A call that the back-end has made last goes to the master before this returns.
        """
        if (tie := self._ties.pop(index, None)) is not None:
            tie.close()
        if self._calls is not None:
            self._calls.remove(index)
        # Not before: the thread may use them until then.
        for fd in self._fds.pop(index, ()):
            os.close(fd)

    def counts(self, index: int) -> tuple[int, int]:
        """Return how many calls the thread has passed on, and kicks it has made."""
        return (0, 0) if self._calls is None else self._calls.counts(index)

    def close(self) -> None:
        """End the thread; the caller has stopped the back-end."""
        # Each step runs even if another fails.  The last entry runs first.
        with ExitStack() as undo:
            undo.callback(self._end_thread)
            for index in self._fds:
                undo.callback(self.remove, index)

    def _end_thread(self) -> None:
        if self._calls is not None:
            self._calls.close()
            self._calls = None


def _made(fds: list[int]) -> int:
    """Make an eventfd, and note it among those to close."""
    fds.append(new_eventfd())
    return fds[-1]


def _is_socket(fd: int) -> bool:
    # User Mode Linux has sockets, which a back-end does not take in place of eventfds.
    return stat.S_ISSOCK(os.fstat(fd).st_mode)
