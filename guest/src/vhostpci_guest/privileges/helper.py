# SPDX-License-Identifier: Apache-2.0
"""A helper: a process that the agent forks at its start, and that keeps privileges.

It is forked and not executed: in an emulated slave VM the start of another Python takes
seconds, and this way its memory is shared.  So it is forked before the agent has
threads or devices.

It holds nothing from one order to the next.  So it does not matter how it ends: with
the agent, at once, when that is killed (else it could do the rest of an order while a
successor begins), and otherwise when the agent closes its end.  One helper differs: it
is there to hold something for longer than the agent lives (pci/hold.py).
"""

import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from vhostpci_shared.log_writer import STDERR, LogWriter

from . import process
from .channel import Channel, Handler, serve

log = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds that `close` waits; a helper that is not busy ends within milliseconds."""
_PAUSE = 0.002
_ENDED_BY_AGENT = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2),
)
"""Signals to a whole process group or service: the agent needs us until its end."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a helper does."""

    make: Callable[[], Mapping[str, Handler]]
    outlive: Callable[[], None] | None
    blocked: Set[int]
    """The signals that it blocks, as the agent does."""


class Helper:
    """A helper process, as the agent sees it; `close` ends it.

    Args:
        name: of the process, as `ps` shows it.
        does: what it does, for an error: "binds devices".
        keep: the capabilities that it keeps, of those that we have.
        make: makes what it does, by the names of the orders; called in the helper,
            with the agent's PID.
        outlive: what it does when the agent has ended, in whatever way; None: it is
            killed with the agent.
    """

    def __init__(
        self,
        name: str,
        does: str,
        keep: Set[int],
        make: Callable[[int], Mapping[str, Handler]],
        outlive: Callable[[], None] | None = None,
    ) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        agent = os.getpid()
        # Until the helper ignores them: one that comes before would end it.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDED_BY_AGENT)
        try:
            # A warning of Python's is not meant for us: of the threads that may exist,
            # as the log's, the helper uses none.
            self.pid = os.fork()
            if self.pid == 0:
                work = Work(lambda: make(agent), outlive, blocked)
                _end(lambda: _run(theirs, name, keep, work, agent))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        self.channel = Channel(ours, does)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the helper, and wait until it has ended, `PATIENCE` seconds at most.

        One that hangs in the kernel, as in the write that unbinds a driver, must not
        keep the agent: it is killed when that has ended.
        """
        self.channel.close()
        until = time.monotonic() + PATIENCE
        while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            if time.monotonic() >= until:
                log.warning("a helper process is busy; ending without it")
                return
            time.sleep(_PAUSE)


def _end(run: Callable[[], None]) -> None:
    """Run the helper, and end this process whatever comes of it."""
    # Nothing of the agent's that waits to be undone may be undone here.
    status = 1
    try:
        run()
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        os._exit(status)


def _run(
    sock: socket.socket,
    name: str,
    keep: Set[int],
    work: Work,
    agent: int,
) -> None:
    if work.outlive is None:
        process.end_with_parent(signal.SIGKILL)
    if os.getppid() != agent:
        return  # it was killed before
    process.set_name(name)
    for number in _ENDED_BY_AGENT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, work.blocked)
    # The agent's log has a thread, which is not here.  Its form stays.
    writer = LogWriter()
    writer.setFormatter(next((h.formatter for h in logging.getLogger().handlers), None))
    logging.getLogger().handlers = [writer]
    os.chdir("/")
    _close_all_but(sock.fileno())
    process.limit(keep)
    serve(sock, work.make())
    if work.outlive is not None:
        work.outlive()


def _close_all_but(kept: int) -> None:
    # Not all numbers up to the limit: that may be a thousand million.
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > STDERR and fd != kept:
            with suppress(OSError):  # that of the list itself
                os.close(fd)
