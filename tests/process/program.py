# SPDX-License-Identifier: Apache-2.0
"""A program as a process, and what it says."""

import signal
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.descriptors import open_descriptors
from tests.waiting import TIMEOUT, wait_for


class Program:
    """A program in the foreground of nobody; its log is kept.

    Args:
        argv: its command.
        log: the file that has what it says.
        fds: the descriptors that it inherits.
        prepare: what it does before it is that program.
    """

    def __init__(
        self,
        argv: list[str],
        log: Path,
        *,
        fds: Iterable[int] = (),
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=tuple(fds),
                preexec_fn=prepare,
            )

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text()

    def said(self, text: str) -> int:
        """How many lines of that have `text`."""
        return sum(text in line for line in self.log.splitlines())

    def wait_log(self, text: str, times: int = 1) -> None:
        """Wait until it has said something, so many times."""
        wait_for(
            lambda: self.log.count(text) >= times, lambda: f"{text!r} in\n{self.log}"
        )

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it; return its exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end; return its exit status."""
        try:
            return self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.close()
            raise AssertionError(f"it does not end:\n{self.log}") from None

    def descriptors(self) -> int:
        """How many descriptors it has open."""
        return len(self.open_files())

    def open_files(self) -> dict[int, str]:
        """Return the descriptors that it has open, and what each is."""
        return open_descriptors(self.process.pid)

    def close(self) -> None:
        """Make sure that it is gone."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def new_log(directory: Path) -> Path:
    """Return a file for a program's log, unlike those that are there."""
    return directory / f"{len(list(directory.glob('*.log')))}.log"


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, within a limit."""
    return subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT)
