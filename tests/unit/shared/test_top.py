# SPDX-License-Identifier: Apache-2.0
"""What `top` shows, and that it leaves the terminal as it was."""

import argparse
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import golden
from tests.waiting import TIMEOUT
from vhostpci_shared import top
from vhostpci_shared.terminal import Terminal
from vhostpci_shared.top import Device, Ring, Sample, Top

HERE = Path(__file__).parent / "golden"


def ring(name: str, fill: int | None, **counts: int | None) -> Ring:
    every = dict.fromkeys(top.COUNTS, 0)
    return Ring(name, 256, fill, every | counts)


BEFORE = Sample(
    10.0,
    (
        Device("web", "running", "", (ring("rx0", 0), ring("tx0", 0, kicks=7))),
        Device("db", "running", "", (ring("rx0", 0, packets=1000),)),
    ),
)
AFTER = Sample(
    12.0,
    (
        Device(
            "web",
            "running",
            "master fw-client, slave fw",
            (
                ring("rx0", 250, packets=80_000, bytes=75_000_000, kicks=3),
                ring("tx0", 3, packets=196_000, bytes=300_000_000, kicks=9, drops=40),
            ),
        ),
        # Another agent has begun at 0, and counts no kicks.
        Device(
            "db",
            "no agent: the master has no carrier",
            "master db, slave -",
            (ring("rx0", None, packets=5, kicks=None),),
        ),
        Device("new", "no master", "master -, slave -", ()),
    ),
)


@pytest.mark.parametrize("kind", golden.TERMINALS)
def test_top(kind: str) -> None:
    shown = top.lines("vhostpci-host", BEFORE, AFTER, golden.TERMINALS[kind])
    golden.check(HERE / f"top-{kind}.txt", shown)


def test_terminal_without_blocks_has_a_bar_of_ascii() -> None:
    terminal = Terminal(100, unicode=False)
    shown = top.lines("x", BEFORE, AFTER, terminal)
    assert "########## 250" in "\n".join(shown)


def test_devices_of_one_name_are_not_mixed() -> None:
    def sample(at: float, one: int, other: int) -> Sample:
        devices = (
            Device("net0", "ready", "", (ring("rx0", 0, packets=one),), "one"),
            Device("net0", "ready", "", (ring("rx0", 0, packets=other),), "other"),
        )
        return Sample(at, devices)

    shown = top.lines("x", sample(1.0, 0, 5000), sample(2.0, 7, 5009), Terminal())
    rates = [line.split()[1] for line in shown if "rx0" in line]
    assert rates == ["7", "9"]


def test_other_side_that_goes_is_shown_and_comes_back() -> None:
    times = iter(range(9))
    there = [Device("web", "running", "")]

    def look() -> list[Device]:
        if not there:
            raise OSError("no daemon")
        return there

    ours = Top("x", look, (OSError,), now=lambda: float(next(times)))
    gone, there = there, []
    assert "no daemon" in ours.frame(Terminal())
    there = gone
    assert ours.frame(Terminal())[1] == "web  running"


def test_first_look_without_the_other_side_is_an_error() -> None:
    def look() -> list[Device]:
        raise OSError("no daemon")

    with pytest.raises(OSError, match="no daemon"):
        Top("x", look, (OSError,))


@pytest.mark.parametrize(
    "words", [["-d", "0"], ["-d", "x"], ["-n", "0"], ["-d", "nan"]]
)
def test_option_that_cannot_be_is_refused(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    top.add_options(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(words)


PROGRAM = """
import sys
from vhostpci_shared.screen import run
run(lambda terminal: [f"frame of {terminal.width}", "b" * 5] + ["row"] * 50, 0.2, None)
"""


@contextmanager
def on_a_terminal() -> Iterator[tuple[int, int]]:
    """Run frames on a terminal of 40 columns; give its other end, and the process."""
    pid, other = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm"
        # readline sets both, which pytest imports, and os.environ does not know.
        os.unsetenv("COLUMNS")
        os.unsetenv("LINES")
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("4H", 10, 40, 0, 0))
        os.execv(sys.executable, [sys.executable, "-c", PROGRAM])
    try:
        yield other, pid
    finally:
        os.close(other)
        with_end = time.monotonic() + TIMEOUT
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > with_end:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


def read_until(other: int, text: str) -> str:
    """Read what is written to the terminal until it has the text."""
    found = ""
    end = time.monotonic() + TIMEOUT
    while text not in found:
        ready, _, _ = select.select([other], (), (), max(end - time.monotonic(), 0))
        assert ready, found
        found += os.read(other, 65536).decode(errors="replace")
    return found


@pytest.mark.parametrize("end", ["q", "\x03", signal.SIGTERM], ids=str)
def test_screen_is_left_as_it_was(end: str | signal.Signals) -> None:
    with on_a_terminal() as (other, pid):
        before = read_until(other, "lines more")
        assert "\x1b[?1049h" in before
        assert "frame of 40" in before
        # 10 rows: the rest is named, and the last row stays free, so nothing scrolls.
        assert "... and 44 lines more" in before
        os.write(other, b"\x1b[A")  # an arrow key does nothing
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("4H", 10, 60, 0, 0))
        read_until(other, "frame of 60")
        if isinstance(end, str):
            os.write(other, end.encode())
        else:
            os.kill(pid, end)
        after = read_until(other, "\x1b[?1049l")
        assert "\x1b[?25h" in after
        assert "Traceback" not in after
