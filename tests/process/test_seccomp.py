# SPDX-License-Identifier: Apache-2.0
"""The daemon's filter of system calls: it is there, and what happens at a call.

That nothing else breaks is for all other tests of this directory to show: their
daemons have the filter too.
"""

import os
import signal
from pathlib import Path

import pytest

from tests.fakes.libvirt import FakeLibvirt
from tests.process.lab import Lab
from tests.process.program import ask_status
from tests.processes import children
from tests.threads import thread_statuses
from tests.waiting import wait_for

pytestmark = pytest.mark.process

INTRUDER = """
import os, socket, threading, time
def act():
    while not os.path.exists({order!r}):
        time.sleep(0.05)
    os.unlink({order!r})
    socket.socket(socket.AF_INET)
# In the daemon alone: a forked process has none of its parent's threads.
os.register_at_fork(after_in_child=threading.Thread(target=act, daemon=True).start)
"""
"""Stands for a program that has taken over a thread of the daemon."""


def tasks(pid: int) -> dict[str, str]:
    """Return the filter of each thread of a process, by the thread's name."""
    statuses = thread_statuses(pid).values()
    return {status["Name"]: status["Seccomp"] for status in statuses}


def test_each_thread_is_filtered_and_status_says_so(lab: Lab) -> None:
    daemon = lab.start_daemon("--seccomp", "kill")
    found = tasks(daemon.serving)
    assert set(found.values()) == {"2"}, found
    # The relays are C, which could not be loaded behind the filter.
    assert "_relay" in Path(f"/proc/{daemon.serving}/maps").read_text()
    assert lab.status()["seccomp"] == {"mode": "kill", "problem": None}
    assert "seccomp  kill" in lab.run_host("status", "net0").stdout


def test_forbidden_call_ends_the_daemon_and_its_successor_goes_on(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = tmp_path / "act"
    (tmp_path / "sitecustomize.py").write_text(INTRUDER.format(order=str(order)))
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    keeper = lab.start_daemon("--seccomp", "kill", "--keeper", "auto")
    first = lab.run_host("pid", "net0")
    order.touch()
    keeper.wait_log("made a system call that its filter forbids, and was killed")
    keeper.wait_log("goes on where an earlier daemon has ended")
    assert lab.status()["seccomp"]["mode"] == "kill"
    assert first != lab.run_host("pid", "net0")


def test_virsh_is_run_by_another_process(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "libvirt"
    directory.mkdir()
    libvirt = FakeLibvirt(directory)
    libvirt.start()
    monkeypatch.setenv("PATH", f"{libvirt.bin}:{os.environ['PATH']}")
    daemon = lab.start_daemon("--seccomp", "kill", "--slave-libvirt", "switch")
    daemon.wait_log("the slave VM switch answers")
    pid = daemon.serving
    (runner,) = children(pid)
    assert set(tasks(pid).values()) == {"2"}
    assert tasks(runner) == {"vhostpci-virsh": "0"}
    assert daemon.end(signal.SIGTERM) == 0
    wait_for(lambda: not Path(f"/proc/{runner}").exists(), "it ends with the daemon")


def test_none_is_said_by_status(lab: Lab) -> None:
    daemon = lab.start_daemon("--seccomp", "none")
    assert set(tasks(daemon.serving).values()) == {"0"}
    assert ask_status(lab.run_dir, "net0")["seccomp"]["mode"] == "none"
