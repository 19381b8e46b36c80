# SPDX-License-Identifier: Apache-2.0
"""A daemon whose slave VM's monitor is not there, or hangs: it serves, and it ends.

test ──(silent)── slave.qmp ◄── daemon
"""

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.lab import Lab
from tests.waiting import wait_for
from vhostpci_host.hotplug.qmp_monitor import GREETING_TIME

pytestmark = pytest.mark.process

BOUND = 5.0
"""Seconds that the daemon has to unplug and end."""


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Path]:
    """A monitor that accepts, since its queue does, and never says a word."""
    path = tmp_path / "slave.qmp"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        yield path


def test_slave_that_is_not_there_is_waited_for(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "slave.qmp"
    daemon = lab.start_daemon("--slave-qmp", str(path))
    daemon.wait_log(f"waiting for the slave VM at {path}: start its QEMU with -qmp")
    assert lab.status()["plugging"]["connected"] is False
    text = lab.run_host("status", "net0").stdout
    assert f"plugged  none (wanted: none) in {path}\n" in text
    assert "problem  waiting for the slave VM" in text
    assert daemon.end() == 0


def test_monitor_that_hangs_keeps_nothing_else_from_working(
    lab: Lab, silent: Path
) -> None:
    daemon = lab.start_daemon("--slave-qmp", str(silent))
    for _ in range(20):
        start = time.monotonic()
        assert lab.status()["plugging"]["plugged"] == []
        assert time.monotonic() - start < GREETING_TIME
    wait_for(
        lambda: "one client at a time" in lab.status()["plugging"]["problem"],
        "the status tells what stands in the way",
    )
    assert daemon.log.count("one client at a time") == 1


def test_daemon_ends_in_time_although_the_monitor_hangs(lab: Lab, silent: Path) -> None:
    daemon = lab.start_daemon("--slave-qmp", str(silent))
    start = time.monotonic()
    assert daemon.end() == 0
    assert time.monotonic() - start < BOUND
    assert "Traceback" not in daemon.log
