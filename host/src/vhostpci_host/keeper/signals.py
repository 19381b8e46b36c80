# SPDX-License-Identifier: Apache-2.0
"""The signals by which a user speaks to a daemon, and how none of them is lost.

A process that starts has no handlers yet, and each of these would end it.  So it is
started with all of them blocked: what comes waits until its handlers are there.
The keeper's process imports this module, too.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = (signal.SIGTERM, signal.SIGINT)
FORWARDED = (*ENDING, signal.SIGHUP, signal.SIGUSR1)
"""What the keeper passes on to the daemon."""
ALL = frozenset({*FORWARDED, signal.SIGUSR2})


@contextmanager
def blocked() -> Iterator[None]:
    """Let these signals wait during the block, also in a process that starts in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ALL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def block() -> None:
    """Let these signals wait from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ALL)


def unblock() -> None:
    """Take the signals that wait, and those that come."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ALL)
