# SPDX-License-Identifier: Apache-2.0
"""A hypervisor in a bad state: full, read-only, without its directories or memory.

Before the daemon serves, that is one clear error.  While it serves, the link goes on,
and what cannot be done now is said, and done later.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.tmpfs import mounted
from tests.process.lab import Lab
from tests.process.program import run
from tests.waiting import wait_for

pytestmark = pytest.mark.process


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with mounted(tmp_path / "disk", 1) as directory:
        yield directory


def make_read_only(disk: Path) -> None:
    done = run("mount", "-o", "remount,ro", str(disk))
    assert not done.returncode, done.stderr


def failure(lab: Lab) -> str:
    """Return why the daemon does not start, which it says in one line."""
    done = run(*lab.daemon_argv())
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize("place", ["run_dir", "memory_dir"])
def test_directory_on_a_read_only_disk_is_named(
    lab: Lab, disk: Path, place: str
) -> None:
    there, missing = disk / "there", disk / "missing"
    there.mkdir()
    make_read_only(disk)
    for directory in (there, missing):
        setattr(lab, place, directory)
        text = failure(lab)
        assert str(directory) in text
        assert "Read-only file system" in text


def test_full_disk_for_the_memory_is_named(lab: Lab, disk: Path) -> None:
    (disk / "file").write_bytes(bytes(os.statvfs(disk).f_bavail * 4096))
    lab.memory_dir = disk / "memory"
    text = failure(lab)
    assert f"{disk}" in text
    assert "No space left" in text or "no space left" in text


def test_daemon_goes_on_without_its_run_dir_and_with_the_next(lab: Lab) -> None:
    daemon = lab.start_daemon()
    lab.start_agent()
    lab.start_master().load()
    lab.wait_carrier("UP")
    shutil.rmtree(lab.run_dir)
    daemon.wait_log("make the directory first")
    assert lab.ping_from_master() == 5
    lab.run_dir.mkdir(mode=0o755)
    wait_for(lab.daemon_serves, lambda: daemon.log)
    assert lab.files() == ["net0", "net0.control", "net0.ivshmem", "net0.vhost-user"]
    assert lab.ping_from_slave() == 5


def test_daemon_goes_on_while_its_disks_are_read_only(lab: Lab, disk: Path) -> None:
    """It serves what it has; and at its end it cannot remove its sockets."""
    lab.run_dir = disk / "run"
    daemon = lab.start_daemon()
    lab.start_agent()
    lab.start_master().load()
    lab.wait_carrier("UP")
    make_read_only(disk)
    assert lab.ping_from_master() == 5
    assert lab.daemon_serves()
    assert daemon.end() == 0
    assert "Traceback" not in daemon.log


@pytest.mark.parametrize("number", ["SIGHUP", "SIGUSR1"])
def test_signal_without_a_meaning_changes_nothing(lab: Lab, number: str) -> None:
    daemon = lab.start_daemon()
    subprocess.run(["kill", f"-{number}", str(daemon.serving)], check=True)
    daemon.wait_log(f"{number} is ignored")
    assert lab.daemon_serves()


def test_daemon_with_a_log_on_a_full_disk_serves(lab: Lab) -> None:
    command = " ".join(lab.daemon_argv())
    daemon = lab.start_run(["sh", "-c", f"exec {command} 2>/dev/full"])
    wait_for(lab.daemon_serves, "the daemon serves")
    assert daemon.end() == 0
