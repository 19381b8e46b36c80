# SPDX-License-Identifier: Apache-2.0
"""A program as a process, and its log."""

import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests import daemon_processes
from tests.descriptors import open_descriptors
from tests.processes import stop
from tests.vm.patience import LAST_RESORT, Patience
from tests.waiting import PROCESS_TIMEOUT, wait_for
from vhostpci_host.daemon.control_client import ask


class Program:
    """A program that runs as a process, with its output in a log file.

    Args:
        argv: its command.
        log: the file that its output goes to.
        fds: the descriptors that it inherits.
    """

    def __init__(
        self,
        argv: list[str],
        log: Path,
        *,
        fds: Iterable[int] = (),
    ) -> None:
        self._log = log
        self._log_start = 0
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=tuple(fds),
            )

    @property
    def log(self) -> str:
        """What it has logged, since the last `start_log_here` if there was one."""
        return self._log.read_bytes()[self._log_start :].decode()

    def start_log_here(self) -> None:
        """Leave out of `log` what has been logged until now, by an earlier test."""
        self._log_start = self._log.stat().st_size

    def said(self, text: str) -> int:
        """Return how many lines of `log` contain `text`."""
        return sum(text in line for line in self.log.splitlines())

    def wait_log(self, text: str, times: int = 1) -> None:
        """Wait until `log` contains `text`, so many times."""
        wait_for(
            lambda: self.log.count(text) >= times, lambda: f"{text!r} in\n{self.log}"
        )

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; after SIGSTOP it has stopped when this returns."""
        if number is signal.SIGSTOP:
            stop(self.process.pid)
        else:
            self.process.send_signal(number)

    @property
    def serving(self) -> int:
        """The process that does its work."""
        return self.process.pid

    @property
    def exit_status(self) -> int | None:
        """Its exit status; None while it runs."""
        return self.process.poll()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it; return its exit status."""
        self.send(number)
        return self.wait()

    def end_within(
        self, seconds: float, number: signal.Signals = signal.SIGTERM
    ) -> int:
        """End it; return its exit status; see `wait_within` for the limit."""
        self.send(number)
        return self.wait_within(seconds)

    def wait(self) -> int:
        """Wait for its end; return its exit status."""
        try:
            return self.process.wait(PROCESS_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.close()
            raise AssertionError(f"it does not end:\n{self.log}") from None

    def wait_within(self, seconds: float) -> int:
        """Wait for its end, with a limit for the time that it ran or slept.

        The time that it waits for a processor does not count, so that the limit says
        the same on a loaded machine.
        """
        serving, started = self.serving, self.process.pid
        more = [lambda: started] if started != serving else []
        patience = Patience(seconds, lambda: serving, *more)
        wait_for(
            lambda: self.process.poll() is not None or patience.is_over(),
            f"it ends within {seconds:g} s",
            seconds * LAST_RESORT + PROCESS_TIMEOUT,
        )
        status = self.process.poll()
        assert status is not None, f"it runs after {patience}:\n{self.log}"
        return status

    def descriptors(self) -> int:
        """How many descriptors it has open."""
        return len(self.open_files())

    def open_files(self) -> dict[int, str]:
        """Return the descriptors that it has open, and what each is."""
        return open_descriptors(self.serving)

    def close(self) -> None:
        """End it with SIGKILL if it still runs."""
        if self.process.poll() is None:
            self.send(signal.SIGKILL)
            self.process.wait()


class DaemonProgram(Program):
    """`vhostpci-host run`: the keeper, and the daemon, which is its child.

    Without a keeper it is the daemon alone.  To kill it, to stop it and to continue it
    means both: the keeper would start the daemon again.
    """

    @property
    def serving(self) -> int:
        """The daemon's process."""
        return daemon_processes.serving(self.process.pid)

    def send(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            daemon_processes.send(self.process.pid, number)


def new_log(directory: Path) -> Path:
    """Return the path of a log file that does not exist yet."""
    return directory / f"{len(list(directory.glob('*.log')))}.log"


def ask_status(run_dir: Path, name: str) -> Any:
    """Ask the daemon for a device's status, as `vhostpci-host status -j` does.

    On a loaded machine a Python process takes seconds to start: too long for a test
    that looks again and again until something has changed.
    """
    request = {"command": "status", "name": name}
    return ask(run_dir / f"{name}.control", request, PROCESS_TIMEOUT)


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, within a limit."""
    return subprocess.run(argv, capture_output=True, text=True, timeout=PROCESS_TIMEOUT)
