# SPDX-License-Identifier: Apache-2.0
"""`vhostpci-host run` in a terminal: keys reach the keeper and the daemon alike."""

import os
import pty
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.processes import children
from tests.threads import thread_statuses
from tests.waiting import PROCESS_TIMEOUT, wait_for
from vhostpci_host.daemon.control_client import ask
from vhostpci_host.errors import HostError
from vhostpci_host.keeper.signals import FORWARDED

pytestmark = pytest.mark.process

CTRL_C, CTRL_BACKSLASH = b"\x03", b"\x1c"


class Foreground:
    """`vhostpci-host run net0`, as a shell without job control would start it.

    Args:
        directory: for its files.
        options: more of the command.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        self.run_dir = directory / "run"
        argv = [
            *(sys.executable, "-m", "vhostpci_host", "run", "net0", "--memory", "1M"),
            *("--run-dir", str(self.run_dir), "--memory-dir", str(directory / "m")),
            *options,
        ]
        self.pid, self._terminal = pty.fork()
        if not self.pid:
            os.execv(sys.executable, argv)
        os.set_blocking(self._terminal, False)
        self.output = ""

    def press(self, key: bytes) -> None:
        os.write(self._terminal, key)

    def daemon(self) -> int:
        """Return the process that serves; 0 if none does."""
        self._read()
        try:
            found = ask(self.run_dir / "net0.control", {"command": "pid"})
        except HostError:
            return 0
        return int(found)

    def wait(self) -> int:
        """Return its exit status."""
        end = time.monotonic() + PROCESS_TIMEOUT
        while True:
            self._read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid = 0
                self._read()
                return os.waitstatus_to_exitcode(status)
            assert time.monotonic() < end, self.output
            time.sleep(0.02)

    def _read(self) -> None:
        try:
            while text := os.read(self._terminal, 4096):
                self.output += text.decode()
        except OSError:
            return  # EAGAIN: no more; EIO: the last process has closed it

    def close(self) -> None:
        if self.pid:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._terminal)


@contextmanager
def running(directory: Path, *options: str) -> Iterator[Foreground]:
    foreground = Foreground(directory, *options)
    try:
        yield foreground
    finally:
        foreground.close()


@pytest.fixture
def foreground(tmp_path: Path) -> Iterator[Foreground]:
    with running(tmp_path) as foreground:
        wait_for(foreground.daemon, lambda: foreground.output)
        yield foreground


def test_ctrl_c_ends_keeper_and_daemon_once_and_cleanly(foreground: Foreground) -> None:
    foreground.press(CTRL_C * 3)
    assert foreground.wait() == 0
    assert list(foreground.run_dir.iterdir()) == []
    assert "Traceback" not in foreground.output
    assert "successor" not in foreground.output


def test_ctrl_c_while_it_starts_ends_it(tmp_path: Path) -> None:
    """As soon as there is a daemon, and whatever it has come to."""
    for delay in (0.0, 0.05):
        with running(tmp_path) as foreground:
            wait_for(partial(children, foreground.pid), "the keeper has a child")
            time.sleep(delay)
            foreground.press(CTRL_C)
            assert foreground.wait() == 0
            assert "Traceback" not in foreground.output
            assert list(foreground.run_dir.glob("*")) == []


@pytest.mark.parametrize("keeper", ["auto", "none"])
def test_ctrl_c_at_any_moment_of_the_end_changes_nothing(
    tmp_path: Path, keeper: str
) -> None:
    """One key may reach the daemon when its loop and its handlers are gone."""
    with running(tmp_path, "--keeper", keeper) as foreground:
        wait_for(foreground.daemon, lambda: foreground.output)
        end = time.monotonic() + PROCESS_TIMEOUT
        while not ended(foreground.pid):
            foreground.press(CTRL_C)
            assert time.monotonic() < end
            time.sleep(0.001)
        assert foreground.wait() == 0, foreground.output
        assert "Traceback" not in foreground.output
        assert list(foreground.run_dir.iterdir()) == []


def ended(pid: int) -> bool:
    """Whether a child has ended; its status stays there for `wait`."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def test_only_the_main_thread_of_the_daemon_takes_signals(
    foreground: Foreground,
) -> None:
    """Else one is taken while the main thread blocks it, at the start and the end."""
    daemon = foreground.daemon()
    statuses = thread_statuses(daemon)
    masks = {int(task.name): blocked(status) for task, status in statuses.items()}
    assert not masks.pop(daemon) & set(FORWARDED)
    assert masks
    assert all(mask >= set(FORWARDED) for mask in masks.values())


def blocked(status: dict[str, str]) -> set[int]:
    """Return the signals that a thread blocks, of its status."""
    mask = int(status["SigBlk"], 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


def test_ctrl_backslash_kills_both(foreground: Foreground) -> None:
    daemon = foreground.daemon()
    foreground.press(CTRL_BACKSLASH)
    assert foreground.wait() == -signal.SIGQUIT
    wait_for(lambda: not Path(f"/proc/{daemon}").exists(), "the daemon has ended")
