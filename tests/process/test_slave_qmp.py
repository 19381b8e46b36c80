# SPDX-License-Identifier: Apache-2.0
"""A daemon whose slave VM's monitor is missing or hangs still serves, and still ends.

Each test has a separate daemon: its options differ, and most tests end it.

test ──(silent)── slave.qmp ◄── daemon
"""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.lab import Lab
from tests.vm.patience import Patience
from tests.waiting import wait_for
from vhostpci_host.hotplug.qmp_monitor import GREETING_TIME

pytestmark = pytest.mark.process

BOUND = 5.0
"""Seconds that the daemon has to unplug and end."""


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Path]:
    """A monitor whose socket queues connections, and that never sends a greeting."""
    path = tmp_path / "slave.qmp"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        yield path


def test_daemon_waits_for_a_slave_vm_that_does_not_run_yet(
    lab: Lab, tmp_path: Path
) -> None:
    path = tmp_path / "slave.qmp"
    daemon = lab.start_daemon("--slave-qmp", str(path))
    daemon.wait_log(f"waiting for the slave VM at {path}: start its QEMU with -qmp")
    assert lab.status()["plugging"]["connected"] is False
    text = lab.run_host("status", "net0").stdout
    assert f"plugged  none (wanted: none) in {path}\n" in text
    assert "problem  waiting for the slave VM" in text
    assert daemon.end() == 0


def test_daemon_answers_at_once_while_the_monitor_hangs(lab: Lab, silent: Path) -> None:
    daemon = lab.start_daemon("--slave-qmp", str(silent))
    for _ in range(20):
        patience = Patience(GREETING_TIME / 2, lambda: daemon.serving)
        assert lab.status()["plugging"]["plugged"] == []
        assert not patience.is_over(), f"the daemon waits for the monitor: {patience}"
    wait_for(
        lambda: "one client at a time" in lab.status()["plugging"]["problem"],
        "the status says why nothing is plugged",
    )
    daemon.wait_log("one client at a time")
    assert daemon.log.count("one client at a time") == 1


def test_daemon_ends_in_time_while_the_monitor_hangs(lab: Lab, silent: Path) -> None:
    daemon = lab.start_daemon("--slave-qmp", str(silent))
    assert daemon.end_within(BOUND) == 0
    assert "Traceback" not in daemon.log
