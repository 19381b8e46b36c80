# SPDX-License-Identifier: Apache-2.0
"""Output for people: tables that fit the terminal, and colour where it is wanted.

A cell is a text, which may be `Styled`.  Widths are counted before a style is added, so
an escape sequence never moves a column.  All text goes through `clean`: names and
messages come from other machines, and must not steer the terminal.

Without a terminal nothing is wrapped: a row is a line, as `grep` and `awk` expect it.

Short commands use this module, so it imports little: no dataclasses, no shutil.
"""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

GAP = "  "
"""Between two columns."""
NARROWEST = 16
"""Columns that a wrapped cell needs; with fewer a table becomes a list."""
_UNKNOWN = 80
"""The width of a terminal that does not say its own, such as a serial console."""

AUTO, ALWAYS, NEVER = "auto", "always", "never"
COLORS = (AUTO, ALWAYS, NEVER)

STYLES = {
    "good": "32",
    "bad": "31",
    "warn": "33",
    "name": "1",
    "head": "1",
    "link": "36",
    "dim": "2",
}
"""Each style's parameters for ECMA-48's SGR sequence: green, red, yellow, bold, ..."""


class Styled(str):
    """A text with one of `STYLES`."""

    __slots__ = ("style",)
    style: str

    def __new__(cls, text: str, style: str) -> "Styled":
        """Return the text with a style."""
        made = super().__new__(cls, text)
        made.style = style
        return made


class Terminal:
    """Where output for people goes, and what is possible there.

    Args:
        width: columns; None if lines may be as long as they like.
        color: whether it shows colours.
        unicode: whether it shows characters beyond ASCII.
    """

    def __init__(
        self, width: int | None = None, *, color: bool = False, unicode: bool = True
    ) -> None:
        self.width = width
        self.color = color
        self.unicode = unicode

    @classmethod
    def of(cls, stream: TextIO | None = None, color: str = AUTO) -> "Terminal":
        """Return what a stream can show; `color` is one of `COLORS`."""
        stream = sys.stdout if stream is None else stream
        width = _width(stream)
        return cls(
            width,
            color=_has_color(color, terminal=width is not None),
            unicode=_can_encode(stream, "─│▁█●"),
        )

    def paint(self, cell: str) -> str:
        """Return a cell as text, with its colour if there are colours."""
        text = clean(cell)
        if not self.color or not isinstance(cell, Styled) or not text.strip():
            return text
        return f"\x1b[{STYLES[cell.style]}m{text}\x1b[0m"

    def table(
        self,
        rows: Iterable[Sequence[str]],
        header: Sequence[str] = (),
        *,
        indent: int = 0,
        right: Iterable[int] = (),
    ) -> list[str]:
        """Return the lines of a table.

        If it is too wide, its widest column is wrapped; if that does not help, each row
        becomes a paragraph with a line for each cell.

        Args:
            rows: as many cells in each.
            header: the columns' names; none: no header line.
            indent: spaces before each line.
            right: columns that are aligned at their right end, as numbers are.
        """
        body = [list(row) for row in rows]
        head: list[str] = [Styled(one, "head") for one in header]
        lines = [head, *body] if header else body
        if not lines:
            return []
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        if self.width is not None:
            excess = indent + sum(widths) + len(GAP) * (len(widths) - 1) - self.width
            if excess > 0:
                widest = widths.index(max(widths))
                widths[widest] -= excess
                if widths[widest] < min(NARROWEST, widths[widest] + excess):
                    return self._paragraphs(body, header, indent)
        places = frozenset(right)
        return [one for row in lines for one in self._row(row, widths, indent, places)]

    def _row(
        self,
        row: Sequence[str],
        widths: Sequence[int],
        indent: int,
        right: frozenset[int],
    ) -> Iterator[str]:
        """Yield the lines of one row; cells that are too long are wrapped."""
        parts = [
            [restyle(cell, text) for text in wrap(cell, width)]
            for cell, width in zip(row, widths, strict=True)
        ]
        for line in range(max(map(len, parts))):
            words = []
            for place, (cell, width) in enumerate(zip(parts, widths, strict=True)):
                one: str = cell[line] if line < len(cell) else ""
                space = " " * (width - len(one))
                painted = self.paint(one)
                words.append(space + painted if place in right else painted + space)
            yield (" " * indent + GAP.join(words)).rstrip()

    def _paragraphs(
        self, rows: Iterable[Sequence[str]], header: Sequence[str], indent: int
    ) -> list[str]:
        """Return the rows one below the other, with names before the cells."""
        lines: list[str] = []
        for first, *others in rows:
            lines += self.wrapped(first, indent=indent)
            names = header[1:] or [""] * len(others)
            pairs = zip(names, others, strict=True)
            lines += self._packed([one for one in pairs if one[1].strip()], indent + 2)
        return lines

    def _packed(self, pairs: Sequence[tuple[str, str]], indent: int) -> list[str]:
        """Return lines with as many names and texts as there is room for."""
        lines: list[str] = []
        column = 0
        for name, text in pairs:
            label = Styled(name, "dim")
            needed = len(name) + 1 + len(text)
            if self.width is not None and indent + needed > self.width:
                lines += self.fields([(label, text)], indent=indent)
                column = 0
                continue
            words = f"{self.paint(label)} {self.paint(text)}".strip()
            if column and column + len(GAP) + needed <= (self.width or 0):
                lines[-1] += f"{GAP}{words}"
                column += len(GAP) + needed
            else:
                lines.append(f"{' ' * indent}{words}")
                column = indent + needed
        return lines

    def fields(
        self, pairs: Iterable[tuple[str, str]], *, indent: int = 2, column: int = 0
    ) -> list[str]:
        """Return lines with a label and a text each; a long text goes on below itself.

        Args:
            pairs: label and text; an empty label goes on with the field above.
            indent: spaces before each label.
            column: from a label's begin to its text, if all labels are shorter.
        """
        found = list(pairs)
        labels = max((len(label) for label, _ in found), default=0)
        if column <= labels:
            column = labels + len(GAP) if labels else 0
        start = indent + column
        # Too few columns for both: the text stands below its label.
        below = self.width is not None and self.width - start < NARROWEST
        hang = indent + 2 if below else start
        lines: list[str] = []
        for label, text in found:
            space = " " * (column - len(label))
            front = " " * indent + self.paint(label)
            rest = self.wrapped(text, indent=hang)
            if below and label:
                lines += [front.rstrip(), *rest]
            elif labels and not below:
                first = rest[0][hang:] if rest else ""
                lines += [f"{front}{space}{first}".rstrip(), *rest[1:]]
            else:
                lines += rest
        return lines

    def wrapped(self, cell: str, *, indent: int = 0) -> list[str]:
        """Return the lines of one text, all with the same indent."""
        width = None if self.width is None else max(self.width - indent, 1)
        return [
            (" " * indent + self.paint(restyle(cell, text))).rstrip()
            for text in wrap(cell, width)
        ]


def add_color(parser: ArgumentParser) -> None:
    """Add the option `--color` to a command that prints for people."""
    parser.add_argument(
        "--color",
        choices=COLORS,
        default=AUTO,
        help="auto: on a terminal, unless NO_COLOR is set or TERM is dumb "
        "(default: %(default)s)",
    )


def clean(text: str) -> str:
    """Return a text without characters that would steer a terminal."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else "?" for one in text)


def restyle(cell: str, text: str) -> str:
    """Return another text with a cell's style."""
    return Styled(text, cell.style) if isinstance(cell, Styled) else text


def wrap(text: str, width: int | None) -> list[str]:
    """Return the lines of a text, none longer than `width`; at least one.

    Spaces inside a line stay as they are; a word that is too long is cut.
    """
    if width is None or len(text) <= width:
        return [text]
    lines = []
    while len(text) > width:
        # One character more: a space right behind the line does not belong to it.
        end = text.rfind(" ", 0, width + 1)
        if end <= 0 or not text[:end].strip():
            lines.append(text[:width])
            text = text[width:]
        else:
            lines.append(text[:end].rstrip())
            text = text[end:].lstrip()
    return [*lines, text] if text else lines


def _width(stream: TextIO) -> int | None:
    """Return the columns of the terminal behind a stream; None if it is none."""
    try:
        if not stream.isatty():
            return None
        columns = os.get_terminal_size(stream.fileno()).columns
    # ValueError: the stream is closed, or has no descriptor.
    except (OSError, ValueError):
        return None
    chosen = os.environ.get("COLUMNS", "")
    return (int(chosen) if chosen.isdecimal() else columns) or _UNKNOWN


def _has_color(wanted: str, *, terminal: bool) -> bool:
    if wanted != AUTO:
        return wanted == ALWAYS
    # https://no-color.org: present and not empty.
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") in (None, "", "dumb")
    return terminal and not plain


def _can_encode(stream: TextIO, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True
