# SPDX-License-Identifier: Apache-2.0
"""TOML with line numbers, and with all that is wrong with it at once.

`tomllib` tells no lines, and stops at the first error.  So the text is cut into
*statements*, each a header or a key with its value, and `tomllib` reads each of them
alone: a broken one hides none of the others.  Only the cutting is ours.  It knows
strings, comments and brackets, which are all that can hide a line's end.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Key = tuple[str, ...]

_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""{1,3}'  # its last three quotes may follow two of its text
    r"|'''.*?'''{1,3}"
    r'|"(?:\\[^\n]|[^"\\\n])*"?'
    r"|'[^'\n]*'?"
    r"|\#[^\n]*"
    r"|[][{}\n]"
    r"|[^][{}\n\"'#]+",
    re.DOTALL,
)
_NEW_START = re.compile(
    r"[ \t]*(?:\[+[ \t]*device\b|[\w-]+(?:[ \t]*\.[ \t]*[\w-]+)*[ \t]*=)", re.ASCII
)
"""What no line of an array begins with: its bracket was never closed."""
_NAME = re.compile(r"\s*([\w-]+)\s*=", re.ASCII)
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value, under its full key."""

    key: Key
    value: object
    line: int


@dataclass(frozen=True, slots=True)
class Mistake:
    """Something wrong with line `line`."""

    line: int
    text: str


@dataclass(slots=True)
class Document:
    """What a text has, and what is wrong with it."""

    leaves: list[Leaf] = field(default_factory=list)
    tables: dict[Key, int] = field(default_factory=dict)
    """The lines of the tables that have a header, or nothing in them."""
    mistakes: list[Mistake] = field(default_factory=list)
    broken: set[Key] = field(default_factory=set)
    """Keys that are there, with a value that cannot be read."""


def read(text: str) -> Document:
    """Return all there is to say of a text; this never raises."""
    return _Reading(text.replace("\r\n", "\n")).document


def statements(text: str) -> Iterator[tuple[int, str]]:
    """Cut the text: each header, and each key with its value, and its first line."""
    line, start, brackets = 1, 0, 0
    for token in _TOKEN.finditer(text):
        word = token[0]
        if word in ("[", "{"):
            brackets += 1
        elif word in ("]", "}"):
            brackets -= 1
        elif word == "\n" and (brackets <= 0 or _NEW_START.match(text, token.end())):
            yield line, text[start : token.start()]
            line += text.count("\n", start, token.end())
            start, brackets = token.end(), 0
    yield line, text[start:]


class _Reading:
    """One pass over a text."""

    def __init__(self, text: str) -> None:
        self.document = Document()
        self._lines: dict[Key, int] = {}
        self._table: Key | None = ()
        """Where keys go; None below a header that cannot be read."""
        for line, statement in statements(text):
            if (stripped := statement.strip()) and not stripped.startswith("#"):
                self._take(line, statement)
        if not self.document.mistakes:
            self._parse(1, text)  # what no statement shows by itself

    def _take(self, line: int, statement: str) -> None:
        header = statement.lstrip().startswith("[")
        if header:
            self._table = None
        parsed = self._parse(line, statement)
        if parsed is None:
            if self._table is not None and (name := _NAME.match(statement)):
                self.document.broken.add((*self._table, name[1]))
        elif header:
            self._open(line, parsed)
        elif self._table is not None:
            self._add(self._table, parsed, line)

    def _parse(self, line: int, text: str) -> dict[str, Any] | None:
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            self._report(line, text, str(error))
        except RecursionError:
            self._report(line, text, "Too many brackets in one another")
        return None

    def _report(self, line: int, text: str, what: str) -> None:
        place = _PLACE.search(what)
        what = what[: place.start()] if place else what
        what = what[:1].lower() + what[1:]
        if place and place[1]:
            line += int(place[1]) - 1
            what += f" (column {place[2]})"
        else:
            line += text.rstrip().count("\n")
        self.document.mistakes.append(Mistake(line, f"this is no TOML: {what}"))

    def _open(self, line: int, parsed: dict[str, Any]) -> None:
        """Open the table of a header, which was parsed by itself."""
        key: list[str] = []
        inner: object = parsed
        while isinstance(inner, dict) and inner:
            ((name, inner),) = inner.items()
            key.append(name)
        name = ".".join(key)
        if isinstance(inner, list):
            self._mistake(line, f"[[{name}]]: write [{name}], with single brackets")
            return
        self._table = tuple(key)
        if self._first(self._table, line, f"table [{name}]"):
            self.document.tables[self._table] = line

    def _add(self, table: Key, values: dict[str, Any], line: int) -> None:
        for name, value in values.items():
            key = (*table, name)
            if isinstance(value, dict) and value:
                self._add(key, value, line)
            elif self._first(key, line, ".".join(key)):
                if value == {}:
                    self.document.tables[key] = line
                else:
                    self.document.leaves.append(Leaf(key, value, line))

    def _first(self, key: Key, line: int, what: str) -> bool:
        """See whether it is there for the first time."""
        before = self._lines.setdefault(key, line)
        if before == line:
            return True
        self._mistake(
            line, f"{what} is there twice, first in line {before}: remove one of them"
        )
        return False

    def _mistake(self, line: int, text: str) -> None:
        self.document.mistakes.append(Mistake(line, text))
