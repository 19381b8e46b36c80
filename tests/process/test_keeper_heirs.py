# SPDX-License-Identifier: Apache-2.0
"""The keeper's process: the next daemon, which is started before this one ends."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.process.kept_program import keeper, kill_last, pids
from tests.waiting import wait_for
from vhostpci_host.keeper import notices

pytestmark = pytest.mark.process

HEIR = """
if "VHOSTPCI_HEIR" in os.environ:
    if os.path.exists("broken"):
        sys.exit(3)
    say("HEIR=1")
    while True:
        notice, ancillary, *_ = keeper.recvmsg(4096, 4096)
        if notice == b"GO=1":
            break
        names = notice.decode().split("=")[1].split(":")
        fds = array.array("i", ancillary[0][2])
        kept = {name: os.pread(fd, 9, 0).decode() for name, fd in zip(names, fds)}
    print("heir has", kept, flush=True)
signal.signal(signal.SIGUSR2, lambda *_: os._exit(75))
take_signals()
say("READY=1")
"""
SERVES = """
print("serves", flush=True)
while True: signal.pause()
"""
"""What the program does when it has all that was kept."""


def test_successor_is_started_before_the_daemon_ends(tmp_path: Path) -> None:
    child = (
        HEIR
        + """
if not kept:
    for number in range(300):
        keep(f"d{number}", str(number))
"""
        + SERVES
    )
    everything = {f"d{number}": str(number) for number in range(300)}
    del everything["d0"]
    with keeper(tmp_path, child) as program:
        program.wait_log("serves")
        program.send(signal.SIGUSR2)
        program.wait_log("serves", 2)
        assert program.said("makes room") == 1
        assert "'d299': '299'" in program.log
        program.send(signal.SIGUSR2)
        program.wait_log("serves", 3)
        assert len(pids(program)) == 3
        kill_last(program)
        program.wait_log("serves", 4)
        assert program.end() == 128 + signal.SIGTERM


def test_standby_takes_over_when_the_daemon_is_killed(tmp_path: Path) -> None:
    """And the next one waits, unless an upgrade asks for another one."""
    child = HEIR + 'if not kept: keep("state", "x")' + SERVES
    with keeper(tmp_path, child, STANDBY="yes") as program:
        for count in (1, 2, 3):
            program.wait_log("serves", count)
            wait_for(lambda: len(pids(program)) > count, lambda: program.log)  # noqa: B023
            time.sleep(0.2)
            os.kill(pids(program)[count - 1], signal.SIGKILL)
        program.wait_log("serves", 4)
        assert program.said("heir has {'state': 'x'}") == 3
        wait_for(lambda: len(pids(program)) == 5, lambda: program.log)
        time.sleep(0.2)
        program.send(signal.SIGUSR2)
        program.wait_log("serves", 5)
        assert program.said("makes room") == 1
        wait_for(lambda: len(pids(program)) == 7, lambda: program.log)
        assert program.end() == 128 + signal.SIGTERM
    for pid in pids(program):
        assert not Path(f"/proc/{pid}").exists()


def test_successor_that_does_not_start_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    child = HEIR + SERVES
    with keeper(tmp_path, child) as program:
        program.wait_log("serves")
        Path("broken").touch()
        program.send(signal.SIGUSR2)
        program.wait_log("has not started (status 3): this one goes on")
        Path("broken").unlink()
        program.send(signal.SIGUSR2)
        program.wait_log("serves", 2)
        assert program.end() == 128 + signal.SIGTERM


FULL = """
import errno
fork = os.fork
def fork_if_there_is_room():
    if os.path.exists("full"):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()
os.fork = fork_if_there_is_room
"""
"""The machine has no room for a process while there is a file of that name."""


def test_next_daemon_that_finds_no_room_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    child = (
        HEIR
        + """
print("serves", flush=True)
while True: print("told", keeper.recv(99), flush=True)
"""
    )
    with keeper(tmp_path, child, CHANGE=FULL) as program:
        program.wait_log("serves")
        Path("full").touch()
        program.send(signal.SIGUSR2)
        program.wait_log(f"told {notices.NO_HEIR!r}")
        assert program.said("cannot start the next daemon: Resource temporarily") == 1
        Path("full").unlink()
        program.send(signal.SIGUSR2)
        program.wait_log("serves", 2)
        assert program.end() == 128 + signal.SIGTERM


def test_last_words_of_a_daemon_that_has_not_listened_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed with a word of the keeper's unread, which resets the channel."""
    monkeypatch.chdir(tmp_path)
    child = """
if kept: sys.exit(0)
say("READY=1")
open("full", "w").close()
os.kill(os.getppid(), signal.SIGUSR2)
keeper.recv(99, socket.MSG_PEEK)
open("between", "w").close()
say("STATUS=")
while not os.path.exists("waits"):
    time.sleep(0.001)
keep("state", "x")
os.unlink("full")
this = os.getpid()
if os.fork():
    os.kill(this, signal.SIGKILL)
keeper.close()
while open(f"/proc/{this}/stat").read().rsplit(")")[1].split()[0] != "Z":
    time.sleep(0.001)
os.unlink("between")
os._exit(0)
"""
    # The daemon does all this when the keeper has read what there was, and has yet to
    # see whether the daemon lives.
    change = """
import time
status = process._status
def status_later(pid):
    while os.path.exists("between"):
        open("waits", "w").close()
        time.sleep(0.001)
    return status(pid)
process._status = status_later
"""
    with keeper(tmp_path, child, CHANGE=FULL + change) as program:
        assert program.wait() == 0
        assert len(pids(program)) == 2


def test_successor_is_started_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    child = """
if kept: sys.exit(0)
say("READY=1")
keep("state", "x")
open("full", "w").close()
os.kill(os.getpid(), signal.SIGKILL)
"""
    with keeper(tmp_path, child, CHANGE=FULL + "process.RETRY = 0.01") as program:
        program.wait_log("cannot start the next daemon")
        time.sleep(0.2)
        assert program.process.poll() is None
        Path("full").unlink()
        assert program.wait() == 0
        assert program.said("cannot start the next daemon") == 1
        assert len(pids(program)) == 2


def test_keeper_ends_although_there_is_no_room_for_a_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    child = """
say("READY=1")
open("full", "w").close()
os.kill(os.getpid(), signal.SIGKILL)
"""
    with keeper(tmp_path, child, CHANGE=FULL) as program:
        program.wait_log("cannot start the next daemon")
        assert program.end() == 1


def test_standby_is_started_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    full = """
if "VHOSTPCI_HEIR" not in os.environ: open("full", "w").close()
"""
    child = full + HEIR + "while True: signal.pause()"
    change = FULL + "process.TICK = 0.02"
    with keeper(tmp_path, child, CHANGE=change, STANDBY="yes") as program:
        program.wait_log("cannot start the next daemon")
        time.sleep(0.2)  # some ticks
        assert program.said("cannot start the next daemon") == 1
        Path("full").unlink()
        wait_for(lambda: len(pids(program)) == 2, lambda: program.log)
        assert program.end() == 128 + signal.SIGTERM


def test_upgrades_that_are_asked_for_too_soon_lose_nothing(tmp_path: Path) -> None:
    """Each waits until the daemon is ready that came by the one before."""
    child = (
        HEIR.replace(
            'say("READY=1")',
            """
if not kept:
    keep("state", "x")
print("serves", flush=True)
time.sleep(0.3)
say("READY=1")
""",
        )
        + "while True: signal.pause()"
    )
    with keeper(tmp_path, child) as program:
        for count in range(1, 5):
            program.wait_log("serves", count)
            program.send(signal.SIGUSR2)
        program.wait_log("serves", 5)
        assert program.said("heir has {'state': 'x'}") == 4
        assert program.said("makes room") == 4
