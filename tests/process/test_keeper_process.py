# SPDX-License-Identifier: Apache-2.0
"""The keeper's process: when it starts a daemon again, and with what."""

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.process.kept_program import keeper, kill_last, pids
from tests.processes import waits_in
from tests.waiting import wait_for
from vhostpci_host.keeper import notices

pytestmark = pytest.mark.process


def test_successor_has_what_was_kept(tmp_path: Path) -> None:
    child = """
say("READY=1")
if not kept:
    keep("one", "first")
    keep("two", "second")
    keep("three", "third")
    say("FDSTOREREMOVE=1\\nFDNAME=two")
elif len(kept) == 2:
    keep("four", "fourth")
take_signals()
print("done", flush=True)
signal.pause()
"""
    with keeper(tmp_path, child) as program:
        program.wait_log("done")
        kill_last(program)
        program.wait_log("has {'one': 'first', 'three': 'third'}")
        program.wait_log("done", 2)
        kill_last(program)
        program.wait_log("has {'one': 'first', 'three': 'third', 'four': 'fourth'}")
        program.wait_log("done", 3)
        assert program.end() == 128 + signal.SIGTERM


def test_successor_has_everything_although_most_descriptors_are_in_use(
    tmp_path: Path,
) -> None:
    """It starts with what was kept, and not with twice as many descriptors."""
    child = """
if not kept:
    say("READY=1")
    for number in range(100):
        keep(f"d{number}", str(number))
    os.closerange(keeper.fileno() + 1, 200)
    for number in range(0, 100, 3):
        say(f"FDSTOREREMOVE=1\\nFDNAME=d{number}")
    # In holes between the others, and in another order than by their numbers.
    for number in range(100, 134):
        keep(f"d{number}", str(number))
elif kept != {f"d{n}": str(n) for n in range(134) if n % 3 or n >= 100}:
    sys.exit(2)
elif sum(os.path.exists(f"/proc/self/fd/{n}") for n in range(3, 200)) != 101:
    sys.exit(1)
else:
    sys.exit(0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    change = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (115, 115))"
    with keeper(tmp_path, child, CHANGE=change) as program:
        assert program.wait() == 0
        assert len(pids(program)) == 2


@pytest.mark.parametrize("status", [0, 1, 2])
def test_daemon_that_ends_by_itself_ends_its_keeper(
    tmp_path: Path, status: int
) -> None:
    with keeper(tmp_path, f"sys.exit({status})") as program:
        assert program.wait() == status
        assert len(pids(program)) == 1


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (f"os._exit({notices.FAILED})", 1),
        ("import no_such_module", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL),
    ],
    ids=["failed", "traceback", "killed"],
)
def test_daemon_that_cannot_start_is_not_started_again(
    tmp_path: Path, end: str, status: int
) -> None:
    with keeper(tmp_path, end) as program:
        assert program.wait() == status
        assert len(pids(program)) == 1


def test_daemon_that_is_killed_while_it_starts_to_serve_has_a_successor(
    tmp_path: Path,
) -> None:
    """It may have devices already that masters are connected to."""
    child = """
if kept:
    sys.exit(0)
keep("state", "x")
os.kill(os.getpid(), signal.SIGKILL)
"""
    with keeper(tmp_path, child) as program:
        assert program.wait() == 0
        assert len(pids(program)) == 2


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name
)
def test_signal_waits_until_the_daemon_has_its_handlers(
    tmp_path: Path, number: signal.Signals
) -> None:
    child = """
time.sleep(0.5)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
signal.signal(signal.SIGHUP, lambda *_: sys.exit(2))
take_signals()
time.sleep(20)
"""
    with keeper(tmp_path, child) as program:
        program.wait_log("pid ")
        assert program.end(number) == {signal.SIGTERM: 0, signal.SIGHUP: 2}[number]
        assert len(pids(program)) == 1


def test_daemon_that_hangs_before_it_has_handlers_is_killed_at_a_later_signal(
    tmp_path: Path,
) -> None:
    with keeper(tmp_path, "time.sleep(60)") as program:
        program.wait_log("pid ")
        program.send(signal.SIGINT)
        time.sleep(0.2)
        assert program.process.poll() is None
        while program.process.poll() is None:
            program.send(signal.SIGINT)
            time.sleep(0.1)
        assert program.wait() == 128 + signal.SIGKILL


def test_signals_at_once_do_not_kill_a_daemon_that_starts(tmp_path: Path) -> None:
    """A key repeats itself, and the daemon may be about to take its signals."""
    child = """
for _ in range(3):
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(0.1)
# At once: while Python cleans up, a second signal would kill it.
signal.signal(signal.SIGINT, lambda *_: os._exit(0))
take_signals()
time.sleep(20)
"""
    change = "process.ASKED_AGAIN = 60.0"
    with keeper(tmp_path, child, CHANGE=change) as program:
        assert program.wait() == 0


def test_signal_that_comes_when_the_daemon_has_just_ended_changes_nothing(
    tmp_path: Path,
) -> None:
    change = """
import signal
status = process._status
def status_and_signal(pid):
    found = status(pid)
    if found is not None:
        print("a signal", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
    return found
process._status = status_and_signal
"""
    with keeper(tmp_path, "sys.exit(0)", CHANGE=change) as program:
        assert program.wait() == 0
        assert program.said("a signal") == 1


def test_keeper_that_reads_late_does_not_kill_a_daemon_that_serves(
    tmp_path: Path,
) -> None:
    """It has said that it lives; the keeper has yet to read it."""
    child = """
signal.signal(signal.SIGINT, lambda *_: None)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
take_signals()
above = os.getppid()
os.kill(above, signal.SIGSTOP)
while open(f"/proc/{above}/stat").read().rsplit(")")[1].split()[0] != "T":
    time.sleep(0.001)
say("WATCHDOG=1")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
    os.kill(above, number)
time.sleep(20)
"""
    change = "process.ASKED_AGAIN = 0.0"
    with keeper(tmp_path, child, CHANGE=change) as program:
        assert program.wait() == 0


def test_daemon_that_makes_room_while_it_is_to_end_has_a_successor_that_ends(
    tmp_path: Path,
) -> None:
    """What the first one has not closed would stay: its sockets, a plugged device."""
    child = f"""
if kept:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    take_signals()
    time.sleep(20)
say("READY=1")
keep("state", "x")
os.kill(os.getppid(), signal.SIGTERM)
while signal.SIGTERM not in signal.sigpending():
    time.sleep(0.001)
os._exit({notices.HANDED_OVER})
"""
    with keeper(tmp_path, child) as program:
        assert program.wait() == 0
        assert len(pids(program)) == 2


@pytest.mark.parametrize("status", [notices.FAILED, notices.HANDED_OVER])
def test_daemon_that_fails_or_makes_room_has_a_successor(
    tmp_path: Path, status: int
) -> None:
    child = f"""
if kept: sys.exit(0)
say("READY=1")
keep("state", "x")
os._exit({status})
"""
    with keeper(tmp_path, child) as program:
        assert program.wait() == 0
        assert len(pids(program)) == 2


@pytest.mark.parametrize("output", ["/dev/full", "a pipe that no one reads"])
def test_daemon_has_a_successor_although_the_keeper_cannot_say_so(
    tmp_path: Path, output: str
) -> None:
    """Neither a full disk nor a log that was closed costs the masters anything."""
    child = """
if kept: sys.exit(0)
say("READY=1")
keep("state", "x")
os.kill(os.getpid(), signal.SIGKILL)
"""
    change = {
        "/dev/full": "os.dup2(os.open('/dev/full', os.O_WRONLY), 2)",
        "a pipe that no one reads": """
read, write = os.pipe()
os.dup2(write, 2)
os.close(read)
""",
    }
    with keeper(tmp_path, child, CHANGE=change[output]) as program:
        assert program.wait() == 0
        assert len(pids(program)) == 2


def test_clean_end_is_passed_on_and_has_no_successor(tmp_path: Path) -> None:
    child = """
def end(*_):
    print("ends", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
take_signals()
print("ready", flush=True)
while True: signal.pause()
"""
    with keeper(tmp_path, child) as program:
        program.wait_log("ready")
        assert program.end() == 0
        assert program.said("ends") == 1
        assert len(pids(program)) == 1


def test_daemon_that_hangs_is_killed(tmp_path: Path) -> None:
    child = """
if kept: sys.exit(0)
say("READY=1\\nWATCHDOG=1")
keep("state", "x")
while True: signal.pause()
"""
    with keeper(tmp_path, child) as program:
        assert program.wait() == 0
        assert program.said("hangs") == 1


@pytest.mark.parametrize("word", ['say("READY=1")', "pass"])
def test_successor_that_hangs_before_its_first_word_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """The daemon before it has said that it lives, so its successors do as well."""
    monkeypatch.chdir(tmp_path)
    child = f"""
if kept and os.path.exists("hung"): sys.exit(0)
if kept:
    open("hung", "w").close()
    {word}
    while True: signal.pause()
say("READY=1\\nWATCHDOG=1")
keep("state", "x")
os.kill(os.getpid(), signal.SIGKILL)
"""
    # Else one that has not said that it is ready has half a minute.
    change = "process.STARTING = process.PATIENCE" if word == "pass" else ""
    with keeper(tmp_path, child, CHANGE=change) as program:
        assert program.wait() == 0
        # The third is killed, too, where it does not start within that time.
        assert program.said("hangs") >= 1


def test_daemon_that_has_given_its_keeper_up_lives_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    """The keeper was stopped for so long that what it has is out of date."""
    child = """
say("READY=1\\nWATCHDOG=1")
keep("state", "x")
keeper.close()
print("alone", flush=True)
while True: signal.pause()
"""
    with keeper(tmp_path, child) as program:
        program.wait_log("goes on alone")
        time.sleep(3.5)  # longer than one that hangs may be silent
        assert len(pids(program)) == 1
        kill_last(program)
        wait_for(lambda: program.log.count("goes on alone") == 2, lambda: program.log)
        assert program.said("has {}") == 2
        os.kill(pids(program)[-1], signal.SIGKILL)  # it would outlive the keeper


def test_daemon_that_takes_a_while_to_end_does_not_go_on_alone(tmp_path: Path) -> None:
    child = """
say("READY=1")
keep("state", "x")
say("STOPPING=1")
keeper.close()
time.sleep(2)
"""
    with keeper(tmp_path, child) as program:
        assert program.wait() == 0
        assert not program.said("alone")


def test_daemon_that_says_that_it_lives_is_not_killed(tmp_path: Path) -> None:
    child = """
for _ in range(9):
    say("WATCHDOG=1")
    time.sleep(0.5)
"""
    with keeper(tmp_path, child) as program:
        assert program.wait() == 0
        assert len(pids(program)) == 1


def test_successor_that_fails_before_it_is_ready_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package that is only half upgraded must not cost the masters anything."""
    monkeypatch.chdir(tmp_path)
    child = """
if kept and not os.path.exists("tried"):
    open("tried", "w").close()
    import no_such_module
say("READY=1")
if kept: sys.exit(0)
keep("state", "x")
os.kill(os.getpid(), signal.SIGKILL)
"""
    with keeper(tmp_path, child) as program:
        assert program.wait() == 0
        assert len(pids(program)) == 3


def test_what_ends_each_successor_is_kept_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    child = """
if "started" not in os.listdir("."):
    open("started", "w").close()
    say("READY=1")
    keep("bad", "x")
elif not kept:
    sys.exit(0)
os.kill(os.getpid(), signal.SIGBUS)
"""
    with keeper(tmp_path, child) as program:
        assert program.wait() == 0
        assert len(pids(program)) == 4
        assert program.said("it starts without that") == 1


def test_successors_that_others_kill_before_they_are_ready_lose_nothing(
    tmp_path: Path,
) -> None:
    child = """
if not kept:
    say("READY=1")
    keep("state", "x")
time.sleep(60)
"""
    with keeper(tmp_path, child) as program:
        for count in range(1, 5):
            program.wait_log("pid ", count)
            wait_for(
                lambda: "sleep" in waits_in(pids(program)[-1]), lambda: program.log
            )
            kill_last(program)
        assert program.said("has {'state': 'x'}") == 4


def test_service_manager_is_told_of_the_daemon(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(20)
        child = 'say("READY=1\\nSTATUS=serving 1"); time.sleep(0.2)'
        with keeper(tmp_path, child, NOTIFY_SOCKET=path) as program:
            assert manager.recv(100) == b"READY=1\nSTATUS=serving 1"
            assert program.wait() == 0
