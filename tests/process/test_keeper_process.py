# SPDX-License-Identifier: Apache-2.0
"""The keeper's process, with a small program in the daemon's place.

keeper ──── starts, kills, starts again ────► program: says what it sees in its log
   ▲                                             │
   └── notices, with descriptors to be kept ─────┘
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.process.program import Program
from tests.waiting import wait_for
from vhostpci_host.keeper import notices

pytestmark = pytest.mark.process

KEEPER = """
import sys
from vhostpci_host.keeper import process, signals
from vhostpci_host.keeper.process import Keeper, Upstream
import os
process.STARTING = process.PATIENCE
exec(os.environ.get("CHANGE", ""))
command = [sys.executable, "-c", os.environ["CHILD"]]
upstream = Upstream(os.environ.get("NOTIFY_SOCKET"))
status = Keeper(command, upstream, standby="STANDBY" in os.environ).run()
signals.block()
sys.exit(status)
"""
START = """
import array, os, signal, socket, sys, time
keeper = socket.socket(fileno=int(os.environ["VHOSTPCI_KEEPER"]))
def say(text, *fds):
    rights = array.array("i", fds)
    keeper.sendmsg([text.encode()], [(1, 1, rights)] if fds else [])
assert int(os.environ["LISTEN_PID"]) == os.getpid()
def take_signals():
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
assert "NOTIFY_SOCKET" not in os.environ
names = os.environ["LISTEN_FDNAMES"].split(":")[:int(os.environ["LISTEN_FDS"])]
kept = {name: os.pread(3 + place, 9, 0).decode() for place, name in enumerate(names)}
def keep(name, text):
    file = os.memfd_create(name)
    os.write(file, text.encode())
    say(f"FDSTORE=1\\nFDNAME={name}", file)
print("pid", os.getpid(), "has", kept, flush=True)
"""


@contextmanager
def keeper(directory: Path, child: str, **more: str) -> Iterator[Program]:
    """Start the keeper of a program with this text."""
    os.environ |= {"CHILD": START + child, **more}
    try:
        program = Program([sys.executable, "-c", KEEPER], directory / "log")
    finally:
        for name in ("CHILD", *more):
            del os.environ[name]
    try:
        yield program
    finally:
        program.close()


def pids(program: Program) -> list[int]:
    """Return the processes that the keeper has started."""
    return [
        int(line.split()[1])
        for line in program.log.splitlines()
        if line.startswith("pid ")
    ]


def kill_last(program: Program) -> None:
    """Kill the present child, and wait for the next one."""
    count = len(pids(program))
    os.kill(pids(program)[-1], signal.SIGKILL)
    wait_for(lambda: len(pids(program)) > count, lambda: program.log)


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
signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
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
    with keeper(tmp_path, child) as program:
        assert program.wait() == 0
        assert program.said("hangs") == 1


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
            wait_for(lambda: b"sleep" in wchan(pids(program)[-1]), lambda: program.log)
            kill_last(program)
        assert program.said("has {'state': 'x'}") == 4


def wchan(pid: int) -> bytes:
    """Return in which function of the kernel a process waits."""
    return Path(f"/proc/{pid}/wchan").read_bytes()


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


def test_service_manager_is_told_of_the_daemon(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(path)
        manager.settimeout(20)
        child = 'say("READY=1\\nSTATUS=serving 1"); time.sleep(0.2)'
        with keeper(tmp_path, child, NOTIFY_SOCKET=path) as program:
            assert manager.recv(100) == b"READY=1\nSTATUS=serving 1"
            assert program.wait() == 0


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


def test_successor_is_started_before_the_daemon_ends(tmp_path: Path) -> None:
    child = (
        HEIR
        + """
if not kept:
    for number in range(300):
        keep(f"d{number}", str(number))
print("serves", flush=True)
while True: signal.pause()
"""
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
    child = (
        HEIR
        + """
if not kept:
    keep("state", "x")
print("serves", flush=True)
while True: signal.pause()
"""
    )
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
    child = (
        HEIR
        + """
print("serves", flush=True)
while True: signal.pause()
"""
    )
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
