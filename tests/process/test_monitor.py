# SPDX-License-Identifier: Apache-2.0
"""`vhostpci-host monitor` says what happens, and outlives the daemon."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.process.fleet import MODULE, Fleet
from tests.waiting import PROCESS_TIMEOUT


@contextmanager
def monitor(fleet: Fleet, *words: str) -> Iterator[Iterator[dict[str, Any]]]:
    """Run the command; give the events that it prints, for as long as the block."""
    command = [sys.executable, *MODULE, "monitor", "-j", *words]
    command += ["--run-dir", str(fleet.run_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        # An event that does not come ends the test, and not only the tests' run.
        watchdog = threading.Timer(PROCESS_TIMEOUT, process.kill)
        watchdog.start()
        try:
            yield map(json.loads, process.stdout)
        finally:
            watchdog.cancel()
            process.kill()


def wait_event(events: Iterator[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(one for one in events if one["event"] == name)


def test_events_come_as_they_happen_and_go_on_with_the_next_daemon(
    tmp_path: Path,
) -> None:
    with Fleet(tmp_path, ["a", "b"]) as fleet, monitor(fleet) as events:
        before = wait_event(events, "daemon")["pid"]
        assert wait_event(events, "listening")["devices"] == 2
        fleet.master("b").driver_ok([])
        came = wait_event(events, "master-connected")
        assert came["device"] == "b"
        assert came["name"] is not None
        assert fleet.command("restart").returncode == 0
        wait_event(events, "connection-lost")
        assert wait_event(events, "daemon")["pid"] != before
        present = [wait_event(events, "present") for _ in "ab"]
        assert [one["master_pid"] for one in present] == [None, came["pid"]]
        wait_event(events, "listening")
        assert fleet.end() == 0
        last = [next(events)["event"] for _ in range(2)]
        assert last == ["daemon-ends", "connection-lost"]


def test_present_state_alone_can_be_asked_for(tmp_path: Path) -> None:
    with Fleet(tmp_path, ["a"]) as fleet:
        done = fleet.command("monitor", "--once")
        assert done.returncode == 0
        words = [line.split()[1:3] for line in done.stdout.splitlines()]
        assert words == [["-", "daemon"], ["a", "present"], ["-", "listening"]]
        fleet.close()
        done = fleet.command("monitor", "a")
        assert done.returncode == 1
        assert "no daemon at" in done.stderr
