# SPDX-License-Identifier: Apache-2.0
"""A log whose reader hangs costs lines, and never the program."""

import logging
import os
import threading
import time
from collections.abc import Iterator

import pytest

from tests.fakes import threads
from tests.waiting import TIMEOUT, eventually, returns
from vhostpci_shared.log_writer import LAST, MOST, LogWriter


class Pipe:
    """A pipe that is written to as a log, and read only when a test wants to."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.writer = LogWriter(self.write_end)
        self.log = logging.Logger("test")
        self.log.addHandler(self.writer)

    def fill(self) -> None:
        """Leave no room, as a reader that hangs does."""
        os.set_blocking(self.write_end, False)
        for size in (4096, 1):
            try:
                while True:
                    os.write(self.write_end, b"\n" * size)
            except BlockingIOError:
                continue
        os.set_blocking(self.write_end, True)

    def read(self) -> list[str]:
        """Read all, to the end that `close` of the write end makes."""
        with open(self.read_end, closefd=False) as lines:
            return [line.rstrip("\n") for line in lines if line != "\n"]

    def close(self) -> None:
        for fd in (self.read_end, self.write_end):
            os.close(fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_lines_are_written_in_order(pipe: Pipe) -> None:
    for number in range(10):
        pipe.log.warning("line %d", number)
    pipe.writer.close()
    os.write(pipe.write_end, b"last words\n")
    assert os.read(pipe.read_end, 4096).decode().split("\n") == [
        *(f"line {number}" for number in range(10)),
        "last words",
        "",
    ]


def test_log_that_is_not_read_costs_lines_and_no_time(pipe: Pipe) -> None:
    pipe.fill()
    for number in range(3 * MOST):
        pipe.log.warning("line %d", number)
    # None of that has waited: the pipe is as full as before.
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.extend(pipe.read()))
    reader.start()
    assert eventually(lambda: "line 0" in found or pipe.writer._lines.empty())
    pipe.log.warning("the next line")
    pipe.writer.close()
    os.close(pipe.write_end)
    reader.join(TIMEOUT)
    pipe.write_end = os.open(os.devnull, os.O_WRONLY)
    assert found[:2] == ["line 0", "line 1"]
    assert found[-1] == "the next line"
    notes = [line for line in found if line.endswith("it was not read in time")]
    assert found[-2] == notes[-1]
    lost = sum(int(note.split()[0]) for note in notes)
    assert lost + len(found) - len(notes) == 3 * MOST + 1
    assert lost == pytest.approx(2 * MOST, abs=5)


@pytest.mark.parametrize("logged", [True, False])
def test_end_does_not_wait_for_a_log_that_is_not_read(
    pipe: Pipe, *, logged: bool
) -> None:
    pipe.fill()
    if logged:
        pipe.log.warning("nothing reads this")
    started = time.monotonic()
    pipe.writer.close()
    assert time.monotonic() - started < 10 * LAST
    # What the program says after that blocks as little.
    assert returns(lambda: os.write(pipe.write_end, b"last words\n" * 10_000))


def test_reader_that_is_gone_is_no_error(pipe: Pipe) -> None:
    os.close(pipe.read_end)
    pipe.log.warning("one")
    pipe.log.warning("two")
    pipe.writer.close()
    pipe.read_end = os.open(os.devnull, os.O_RDONLY)


def test_non_blocking_descriptor_loses_no_line(pipe: Pipe) -> None:
    os.set_blocking(pipe.write_end, False)
    for number in range(MOST):
        pipe.log.warning("%s %d", "x" * 200, number)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.extend(pipe.read()))
    reader.start()
    pipe.writer.close()
    os.close(pipe.write_end)
    reader.join(TIMEOUT)
    pipe.write_end = os.open(os.devnull, os.O_WRONLY)
    assert [line.split()[1] for line in found] == [str(n) for n in range(MOST)]


def test_line_that_a_pipe_takes_in_parts_is_written_whole(pipe: Pipe) -> None:
    os.set_blocking(pipe.write_end, False)
    pipe.log.warning("%s", "x" * (1 << 20))
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.extend(pipe.read()))
    reader.start()
    pipe.writer.close()
    os.close(pipe.write_end)
    reader.join(TIMEOUT)
    pipe.write_end = os.open(os.devnull, os.O_WRONLY)
    assert list(map(len, found)) == [1 << 20]


def test_thread_rests_until_there_is_another_line(pipe: Pipe) -> None:
    """What was logged before is written by then, and what comes later as well."""
    others = {*threading.enumerate()}  # an earlier test's may be about to end
    pipe.log.warning("before")
    assert pipe.writer.rest()
    assert not {*threading.enumerate()} - others
    assert os.read(pipe.read_end, 4096) == b"before\n"
    assert pipe.writer.rest()
    pipe.log.warning("after")
    pipe.writer.close()
    assert os.read(pipe.read_end, 4096) == b"after\n"


def test_thread_that_is_stuck_cannot_rest(pipe: Pipe) -> None:
    pipe.fill()
    pipe.log.warning("a line")
    assert not pipe.writer.rest()
    found = b""
    while not found.endswith(b"a line\n"):
        found += os.read(pipe.read_end, 65536)
    pipe.writer.close()


def test_line_waits_while_there_is_no_room_for_a_thread(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        threads.allow_none(full)
        pipe.log.warning("first")
    pipe.log.warning("second")
    pipe.writer.close()
    assert os.read(pipe.read_end, 4096) == b"first\nsecond\n"


def test_end_writes_what_has_found_no_thread(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as full:
        threads.allow_none(full)
        pipe.log.warning("only one")
    pipe.writer.close()
    assert os.read(pipe.read_end, 4096) == b"only one\n"
