# SPDX-License-Identifier: Apache-2.0
"""Waiting for what another process or task does, up to a limit."""

import asyncio
import select
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TIMEOUT = 60.0
"""Seconds that another thread or task may take: under ThreadSanitizer, beside four busy
processes, a second of work takes half a minute."""
PROCESS_TIMEOUT = 120.0
"""Seconds that another process may take: on a loaded machine, several times more."""


def is_readable(fd: int, seconds: float) -> bool:
    """Return whether a descriptor can be read, or hangs up, within so many seconds."""
    # Not select(), which takes no number above 1023.
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(1000 * seconds))


def is_hung_up(fd: int) -> bool:
    """Return whether the other end of a connection is closed."""
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    return bool(poll.poll(0))


def wait_for(
    condition: Callable[[], object],
    what: str | Callable[[], object],
    timeout: float = PROCESS_TIMEOUT,
) -> None:
    """Wait until `condition` is true; fail if it never is.

    A condition that is dear, as one that asks a VM, is looked at less often.

    Args:
        condition: what is looked at.
        what: what is waited for; or returns what there is instead, at the end.
        timeout: seconds until it never is.
    """
    start = looked = time.monotonic()
    while not condition():
        now = time.monotonic()
        if now - start > timeout:
            told = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {timeout:g} s: {told}")
        time.sleep(max(now - looked, 0.01))
        looked = time.monotonic()


def when_still(read: Callable[[], T], seconds: float) -> T:
    """Return what `read` returns once it has returned the same `seconds` before."""
    seen = [read()]

    def same() -> bool:
        time.sleep(seconds)
        seen.append(read())
        return seen[-1] == seen[-2]

    wait_for(same, lambda: f"it stands still: {seen}")
    return seen[-1]


def when_listening(connect: Callable[[], T], timeout: float = PROCESS_TIMEOUT) -> T:
    """Connect to a process that starts: its socket is there before it listens.

    Args:
        connect: connects, and returns the connection.
        timeout: seconds until it is an error that nothing listens.
    """
    end = time.monotonic() + timeout
    while True:
        try:
            return connect()
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def eventually(condition: Callable[[], bool], timeout: float = TIMEOUT) -> bool:
    """Wait for a thread to make it true, and look often; return whether it did."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.0005)
    return condition()


def returns(call: Callable[[], object], timeout: float = 20.0) -> bool:
    """Call a function in a thread, which may stay there; return whether it returned."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(timeout)
    return not thread.is_alive()


async def until(condition: Callable[[], object]) -> None:
    """Let other tasks run until `condition` is true; fail if it never is."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.001)
