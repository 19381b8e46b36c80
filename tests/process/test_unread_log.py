# SPDX-License-Identifier: Apache-2.0
"""Daemon and agent go on, and end, when their log goes to a pipe that is not read."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests import daemon_processes
from tests.process.lab import SLAVE_ADDRESS, Lab
from tests.waiting import TIMEOUT, wait_for

pytestmark = pytest.mark.process


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """The end of a pipe that takes not one byte more, with a reader that hangs."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    for size in (4096, 1):
        try:
            while True:
                os.write(write_end, b"\n" * size)
        except BlockingIOError:
            continue
    os.set_blocking(write_end, True)
    yield write_end
    os.close(read_end)
    os.close(write_end)


@contextmanager
def started(argv: list[str], log: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that writes its log to `log`; killed at the end if it has not ended."""
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield process
    finally:
        if process.poll() is None:
            daemon_processes.send(process.pid, signal.SIGKILL)
        process.wait()


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end, which it must do by itself, with status 0."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT) == 0


def cross(lab: Lab) -> None:
    """Start a master, and let packets cross."""
    lab.wait_carrier("NO-CARRIER")
    lab.start_master().load()
    lab.wait_carrier("UP")
    assert lab.ping_from_master() == 5


def test_daemon_whose_log_is_not_read_serves_and_ends(lab: Lab, full_pipe: int) -> None:
    with started(lab.daemon_argv(), full_pipe) as daemon:
        wait_for((lab.run_dir / "net0.vhost-user").is_socket, "the daemon serves")
        lab.start_agent()
        cross(lab)
        end(daemon)


def test_agent_whose_log_is_not_read_serves_and_ends(lab: Lab, full_pipe: int) -> None:
    lab.start_daemon()
    argv = lab.agent_argv("--address", f"{SLAVE_ADDRESS}/24")
    with started(argv, full_pipe) as agent:
        cross(lab)
        end(agent)


def test_daemon_that_cannot_say_why_it_fails_ends(lab: Lab, full_pipe: int) -> None:
    lab.start_daemon()
    with started(lab.daemon_argv(), full_pipe) as second:
        assert second.wait(TIMEOUT) == 1
