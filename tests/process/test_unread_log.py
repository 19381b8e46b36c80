# SPDX-License-Identifier: Apache-2.0
"""Daemon and agent go on, and end, when their log goes to a pipe that is not read."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

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


def start(argv: list[str], log: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def test_daemon_whose_log_is_not_read_serves_and_ends(lab: Lab, full_pipe: int) -> None:
    daemon = start(lab.daemon_argv(), full_pipe)
    try:
        wait_for((lab.run_dir / "net0.vhost-user").is_socket, "the daemon serves")
        lab.start_agent()
        lab.wait_carrier("NO-CARRIER")
        lab.start_master().load()
        lab.wait_carrier("UP")
        assert lab.ping_from_master() == 5
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(TIMEOUT) == 0
    finally:
        daemon.kill()
        daemon.wait()


def test_agent_whose_log_is_not_read_serves_and_ends(lab: Lab, full_pipe: int) -> None:
    lab.start_daemon()
    agent = start(lab.agent_argv("--address", f"{SLAVE_ADDRESS}/24"), full_pipe)
    try:
        lab.wait_carrier("NO-CARRIER")
        lab.start_master().load()
        lab.wait_carrier("UP")
        assert lab.ping_from_master() == 5
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(TIMEOUT) == 0
    finally:
        agent.kill()
        agent.wait()


def test_daemon_that_cannot_say_why_it_fails_ends(lab: Lab, full_pipe: int) -> None:
    lab.start_daemon()
    second = start(lab.daemon_argv(), full_pipe)
    try:
        assert second.wait(TIMEOUT) == 1
    finally:
        second.kill()
        second.wait()
