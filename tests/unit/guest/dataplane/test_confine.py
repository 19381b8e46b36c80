# SPDX-License-Identifier: Apache-2.0
"""A worker's thread has the system calls that it needs, and no others."""

import errno
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.fakes.driver import Desc
from tests.fakes.pair import CAN_CONFINE, HDR, RX, TX, Pair
from tests.threads import only_thread
from tests.waiting import eventually
from vhostpci_shared.metadata import AgentRingState

pytestmark = pytest.mark.skipif(not CAN_CONFINE, reason="no filter can be set here")

# A thread of a separate process, with the filter; each line is tried in it.
PROGRAM = """
import ctypes, mmap, os, signal, socket, sys, threading
from vhostpci_guest._ring import lib

libc = ctypes.CDLL(None, use_errno=True)
done = threading.Event()
said = []

def mapped(prot):
    # Not through Python's mmap, which duplicates the descriptor.
    got = libc.syscall(9, None, 4096, prot, 0x22, -1, 0)
    if got == -1:
        raise OSError(ctypes.get_errno(), "mmap")

def run():
    assert lib.confine_thread() == 0
    try:
        {what}
        said.append("done")
    except OSError as error:
        said.append(os.strerror(error.errno))
    done.set()

threading.Thread(target=run, daemon=True).start()
done.wait(20)
print(*said)
"""


def tried(what: str) -> str:
    """Return what comes of a statement in a thread with the filter."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{what}", what)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "what",
    [
        "os.open('/dev/null', os.O_RDONLY)",
        "socket.socket()",
        "os.fork()",
        "os.execv('/bin/true', ['true'])",
        "os.kill(os.getpid(), 0)",
        "os.dup(0)",
        "os.memfd_create('x')",
        "os.eventfd(0)",
        "os.unlink('/nonexistent')",
        "os.setns(0, 0)" if sys.version_info >= (3, 12) else "os.chdir('/')",
        "mapped(mmap.PROT_READ | mmap.PROT_EXEC)",
        "signal.pthread_kill(threading.main_thread().ident, 0)",
    ],
)
def test_other_calls_are_refused(what: str) -> None:
    assert tried(what) == os.strerror(errno.EPERM)


@pytest.mark.parametrize(
    "what", ["os.write(2, b'')", "mapped(mmap.PROT_READ | mmap.PROT_WRITE)"]
)
def test_calls_of_a_worker_are_not(what: str) -> None:
    assert tried(what) == "done"


def filters(thread: Path) -> int:
    (line,) = (
        line
        for line in (thread / "status").read_text().splitlines()
        if line.startswith("Seccomp_filters:")
    )
    return int(line.split()[1])


def test_only_the_thread_of_the_worker_is_confined() -> None:
    ours = filters(Path("/proc/thread-self"))
    with Pair(threaded=True, confine=True):
        assert filters(only_thread("vhostpci-0")) == ours + 1
    assert filters(Path("/proc/thread-self")) == ours
    with Pair(threaded=True):
        assert filters(only_thread("vhostpci-0")) == ours


@pytest.mark.parametrize("io_uring", [False, True], ids=["writev", "io_uring"])
def test_confined_worker_moves_packets_and_ends(io_uring: bool) -> None:
    """It sleeps and wakes, calls the master, reads the clock, stops and starts."""
    with Pair(threaded=True, confine=True, io_uring=io_uring, num=32) as pair:
        for number in range(3):
            for _ in range(8):
                pair.tx.send(HDR, b"packet")
            pair.tx.kick()
            pair.rx.offer(Desc(pair.memory.allocate(200), 200))
            pair.rx.kick()
            pair.tap.send(HDR + b"answer")
            assert eventually(partial(moved, pair, 8 * (number + 1), number + 1))
            pair.tx.collect()
            pair.rx.collect()
            pair.worker.stop(TX)
            pair.worker.start(TX, pair.conf(TX, base=8 * (number + 1)))
        assert pair.state(TX) == pair.state(RX) == AgentRingState.RUNNING


def moved(pair: Pair, sent: int, received: int) -> bool:
    """Whether so many packets have gone to the TAP, and come from it."""
    counts = [pair.status(index).stats.packets for index in (TX, RX)]
    return counts == [sent, received]
