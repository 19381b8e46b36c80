# SPDX-License-Identifier: Apache-2.0
"""A process of which we are told when it ends."""

import os
from collections.abc import Callable
from pathlib import Path

from ..device.kept import ProcessState
from ..fds import Fd
from ..interfaces import Loop


class WatchedProcess:
    """Calls back once when a process ends, unless it is closed before.

    Args:
        state: which process.
        loop: calls back.
        ended: is called then.

    Raises:
        OSError: it has ended already, or cannot be watched.
    """

    def __init__(
        self, state: ProcessState, loop: Loop, ended: Callable[[], None]
    ) -> None:
        self.state = state
        self._loop = loop
        self._ended = ended
        try:
            # System calls: pidfd_open.
            self._fd = Fd(os.pidfd_open(state.pid))
        except OverflowError:  # what was left to us may be anything
            raise ProcessLookupError(f"there is no process {state.pid}") from None
        # Its number may have been given to another process before that call.
        if _started(state.pid) != state.started:
            self._fd.close()
            raise ProcessLookupError(f"process {state.pid} has ended")
        loop.add_reader(self._fd.fileno(), self._on_end)

    @classmethod
    def of(cls, pid: int, loop: Loop, ended: Callable[[], None]) -> "WatchedProcess":
        """Watch the process that has this number now.

        Raises:
            OSError: there is none, or it cannot be watched.
        """
        return cls(ProcessState(pid, _started(pid)), loop, ended)

    def _on_end(self) -> None:
        self.close()
        self._ended()

    def close(self) -> None:
        """Watch it no more."""
        if not self._fd.closed:
            self._loop.remove_reader(self._fd.fileno())
            self._fd.close()


def _started(pid: int) -> int:
    """Return when a process has started, in the kernel's ticks.

    Raises:
        OSError: there is no such process.
    """
    text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    # Its name, in parentheses, may have spaces and parentheses in it.
    return int(text.rpartition(")")[2].split()[19])
