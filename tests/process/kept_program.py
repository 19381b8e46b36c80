# SPDX-License-Identifier: Apache-2.0
"""The keeper's process, with a small program in the daemon's place.

keeper ──── starts, kills, starts again ────► program: says what it sees in its log
   ▲                                             │
   └── notices, with descriptors to be kept ─────┘
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.process.program import Program
from tests.waiting import wait_for

KEEPER = """
import sys
from vhostpci_host.keeper import process, signals
from vhostpci_host.keeper.process import Keeper, Upstream
import os
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
