# SPDX-License-Identifier: Apache-2.0
"""A file that another process makes slow to read does not stop the daemon's loop."""

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.waiting import wait_for
from vhostpci_host.memory import limited_read
from vhostpci_host.memory.limited_read import (
    LIMIT,
    LONGEST,
    QUICK,
    STOCK,
    read_with_limit,
)
from vhostpci_shared import quiet_thread


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[Path]:
    """A file whose open() waits, as for a lock of another process."""
    path = tmp_path / "stuck"
    os.mkfifo(path)
    before = set(threading.enumerate())
    yield path
    readers = set(threading.enumerate()) - before

    def are_gone() -> bool:
        # Opened in both directions it never waits, and the readers' open() succeeds,
        # if they have time for it; their read() ends when it is closed.
        with path.open("r+b", buffering=0):
            time.sleep(0.01)
        return not any(reader.is_alive() for reader in readers)

    wait_for(are_gone, "the readers end")


def test_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"what is in it \xff")
    assert read_with_limit(path) == "what is in it \ufffd"


def test_file_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert read_with_limit(tmp_path / "missing") is None


def test_file_that_is_too_long_is_none(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(bytes(LONGEST))
    assert read_with_limit(path) is None


def test_read_that_is_stuck_is_given_up(stuck: Path, tmp_path: Path) -> None:
    """The next one is of another process, which is not to blame."""
    other = tmp_path / "other"
    other.write_text("text")
    assert read_with_limit(stuck) is None
    assert read_with_limit(other) == "text"


def test_reads_that_are_stuck_use_the_time_up(stuck: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("text")
    began, reads = time.monotonic(), 0
    while limited_read.stock.left() > QUICK:
        assert read_with_limit(stuck) is None
        reads += 1
    # No upper bound: a thread that starts late has less time to be stuck.
    assert reads >= STOCK / LIMIT
    assert time.monotonic() - began >= STOCK - QUICK
    assert read_with_limit(other) is None
    limited_read.stock.refill()
    assert read_with_limit(other) == "text"


def test_quick_reads_use_up_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    limited_read.stock.spend(QUICK)
    assert limited_read.stock.left() == STOCK


CMDLINE = Path("/proc/self/cmdline")
"""A file for which the kernel waits for no other process."""


def test_thread_that_starts_late_uses_up_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The machine is busy, which is no fault of the file."""
    start = quiet_thread.start

    def start_late(thread: threading.Thread) -> None:
        time.sleep(3 * QUICK)
        start(thread)

    monkeypatch.setattr(quiet_thread, "start", start_late)
    assert read_with_limit(CMDLINE) == CMDLINE.read_text()
    assert limited_read.stock.left() == STOCK


def test_thread_that_has_not_started_uses_up_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Late(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            """Do not wait: the machine was busy until the time was over."""

    def never_start(thread: threading.Thread) -> None:
        """Leave it waiting for a processor."""

    monkeypatch.setattr(threading, "Thread", Late)
    monkeypatch.setattr(quiet_thread, "start", never_start)
    assert read_with_limit(CMDLINE) is None
    assert limited_read.stock.left() == STOCK


def test_thread_that_waits_for_a_processor_uses_up_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between any two looks at the clock another process has the processor."""
    seconds = itertools.count(time.monotonic())
    clocks = SimpleNamespace(
        monotonic=lambda: next(seconds), thread_time=time.thread_time
    )
    monkeypatch.setattr(limited_read, "time", clocks)
    # It may wait for this thread, which has the interpreter's lock.
    monkeypatch.setattr(limited_read, "_times_blocked", lambda: 0)
    limited_read.stock.refill()
    assert read_with_limit(CMDLINE) == CMDLINE.read_text()
    assert limited_read.stock.left() == STOCK


def use_a_processor() -> None:
    until = time.thread_time() + 3 * QUICK
    while time.thread_time() < until:
        pass


@pytest.mark.parametrize("hold_up", [use_a_processor, lambda: time.sleep(3 * QUICK)])
def test_read_that_another_process_makes_slow_uses_up_the_stock(
    monkeypatch: pytest.MonkeyPatch, hold_up: Callable[[], None]
) -> None:
    read = limited_read._read

    def read_slowly(path: Path) -> str | None:
        hold_up()
        return read(path)

    monkeypatch.setattr(limited_read, "_read", read_slowly)
    assert read_with_limit(CMDLINE) == CMDLINE.read_text()
    assert limited_read.stock.left() <= STOCK - 2 * QUICK
