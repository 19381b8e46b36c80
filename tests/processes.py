# SPDX-License-Identifier: Apache-2.0
"""What the kernel tells of a process: its children, its state, where it waits."""

import os
import signal
from pathlib import Path

from tests.waiting import wait_for


def children(pid: int) -> list[int]:
    """Return the children of a process, the oldest first."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def state(pid: int) -> str:
    """Return its state: S (sleeps), T (stopped), Z (has ended) and others."""
    return _state(Path(f"/proc/{pid}/stat"))


def waits_in(pid: int) -> str:
    """Return the function of the kernel in which it waits; "0" for none."""
    return Path(f"/proc/{pid}/wchan").read_text()


def stop(pid: int) -> None:
    """Send it SIGSTOP; return when it has stopped, which may be a moment later."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: is_stopped(pid), f"process {pid} is stopped")


def is_stopped(pid: int) -> bool:
    """Whether each thread of a process is stopped, or the process has ended."""
    return all(
        _has_ended_or(one, "T") for one in Path(f"/proc/{pid}/task").glob("*/stat")
    )


def _has_ended_or(stat: Path, state: str) -> bool:
    try:
        return _state(stat) in (state, "Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def _state(stat: Path) -> str:
    # The name of the program comes first, in parentheses, and may be anything.
    return stat.read_text().rpartition(")")[2].split()[0]
