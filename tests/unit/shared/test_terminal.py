# SPDX-License-Identifier: Apache-2.0
"""Output for people: what fits the terminal, and what may be written to it."""

import fcntl
import io
import os
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from typing import TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_shared.terminal import COLORS, STYLES, Styled, Terminal, clean, wrap

ROWS = [
    ("web", "running", Styled("the master has more RAM than the device", "bad")),
    ("db", "failed", "no space left for its arena"),
]
HEADER = ("NAME", "STATE", "PROBLEM")


@pytest.fixture
def tty(monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """A terminal of 33 columns."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    controller, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 33, 0, 0))
    with open(terminal, "w", encoding="utf-8") as stream:
        yield stream
    os.close(controller)


def test_without_a_terminal_a_row_is_a_line() -> None:
    lines = Terminal(None).table(ROWS, HEADER)
    assert lines == [
        "NAME  STATE    PROBLEM",
        "web   running  the master has more RAM than the device",
        "db    failed   no space left for its arena",
    ]


def test_long_cell_is_wrapped_in_its_column() -> None:
    assert Terminal(40).table(ROWS, HEADER) == [
        "NAME  STATE    PROBLEM",
        "web   running  the master has more RAM",
        "               than the device",
        "db    failed   no space left for its",
        "               arena",
    ]


def test_table_without_room_for_its_widest_column_becomes_a_list() -> None:
    assert Terminal(30).table(ROWS, HEADER) == [
        "web",
        "  STATE running",
        "  PROBLEM  the master has more",
        "           RAM than the device",
        "db",
        "  STATE failed",
        "  PROBLEM  no space left for",
        "           its arena",
    ]
    numbers = [["rx", *map(str, range(5))]]
    assert Terminal(18).table(numbers, ["RING", *"ABCDE"]) == [
        "rx",
        "  A 0  B 1  C 2",
        "  D 3  E 4",
    ]


def test_numbers_stand_at_the_right_end_of_their_column() -> None:
    rows = [("rx", "7"), ("tx", "1,234")]
    assert Terminal(40).table(rows, indent=2, right=[1]) == [
        "  rx      7",
        "  tx  1,234",
    ]


def test_fields_go_on_below_themselves() -> None:
    pairs = [("memory", "1 GiB"), ("problem", "the file is another's now")]
    assert Terminal(27).fields(pairs) == [
        "  memory   1 GiB",
        "  problem  the file is",
        "           another's now",
    ]
    assert Terminal(20).fields(pairs) == [
        "  memory",
        "    1 GiB",
        "  problem",
        "    the file is",
        "    another's now",
    ]


@given(
    st.lists(st.tuples(st.text(), st.text(), st.text()), min_size=1),
    st.integers(min_value=10, max_value=100),
)
def test_no_line_is_longer_than_the_terminal(
    rows: list[tuple[str, str, str]], width: int
) -> None:
    terminal = Terminal(width)
    lines = terminal.table(rows, ("A", "BB", "CCC"))
    lines += terminal.fields((a, b) for a, b, _ in rows if len(a) < width - 2)
    lines += terminal.table(rows)
    assert max(map(len, lines)) <= width


@given(st.text(), st.integers(min_value=1, max_value=50))
def test_wrapping_loses_nothing_but_spaces(text: str, width: int) -> None:
    assert "".join(wrap(text, width)).replace(" ", "") == text.replace(" ", "")


@given(st.text())
def test_no_text_steers_the_terminal(text: str) -> None:
    terminal = Terminal(40, color=True)
    lines = terminal.table([(text, Styled(text, "bad"))])
    plain = "".join(lines).replace("\x1b[31m", "").replace("\x1b[0m", "")
    assert plain.isprintable()


def test_escape_sequence_of_a_hostile_name_is_shown_as_text() -> None:
    assert clean("a\x1b[2Jb\nc") == "a?[2Jb?c"


def test_colour_moves_no_column() -> None:
    plain, painted = Terminal(40), Terminal(40, color=True)
    lines = painted.table(ROWS, HEADER)
    for number in STYLES.values():
        lines = [line.replace(f"\x1b[{number}m", "") for line in lines]
    lines = [line.replace("\x1b[0m", "").rstrip() for line in lines]
    assert lines == plain.table(ROWS, HEADER)


def test_terminal_has_width_and_colour(tty: TextIO) -> None:
    terminal = Terminal.of(tty)
    assert (terminal.width, terminal.color, terminal.unicode) == (33, True, True)
    assert not Terminal.of(tty, "never").color


@pytest.mark.parametrize(
    ("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("TERM", "")]
)
def test_environment_forbids_colour(
    tty: TextIO, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert not Terminal.of(tty).color
    assert Terminal.of(tty, "always").color


def test_empty_no_color_forbids_nothing(
    tty: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "")
    assert Terminal.of(tty).color


def test_terminal_without_a_size_has_80_columns(tty: TextIO) -> None:
    fcntl.ioctl(tty, termios.TIOCSWINSZ, struct.pack("4H", 0, 0, 0, 0))
    assert Terminal.of(tty).width == 80


def test_file_has_neither_width_nor_colour() -> None:
    terminal = Terminal.of(io.StringIO())
    assert (terminal.width, terminal.color) == (None, False)
    assert Terminal.of(io.StringIO(), "always").color


def test_stream_of_ascii_gets_no_other_characters() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    assert not Terminal.of(stream).unicode
    assert COLORS == ("auto", "always", "never")


def test_module_imports_little() -> None:
    code = "import sys, vhostpci_shared.terminal; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"dataclasses", "shutil", "textwrap", "inspect", "unicodedata"}
    assert heavy & set(done.stdout.split()) == set()
