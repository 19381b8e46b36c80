# SPDX-License-Identifier: Apache-2.0
"""A configuration file in TOML: read within limits, with the line of each key.

`tomllib` says where it gave up, but not where a key stands that it has read.  So
`Document.line` finds that again, by parsing one statement after the other; a file
without mistakes never needs it.
"""

import errno
import json
import os
import re
import reprlib
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import Coded, with_code

LARGEST = 1 << 20
"""Bytes of a file: more than any that a person writes, and read within a moment."""
_LONGEST = 500
"""Lines of one statement, which are parsed again with each further line."""
_DEEPEST = 4
"""Parts of a key whose line is noted: a file has tables of devices, and options."""

# TOML 1.0: a bare key has only ASCII letters, ASCII digits, "_" and "-".
_BARE_KEY = re.compile(r"[\w-]+", re.ASCII)
_STATEMENT = re.compile(
    r"\s*([\w.-]+)\s*=\s*([^\s\"'\[{#=][^#\"']*?)\s*(#.*)?", re.ASCII
)
_PLACE = re.compile(r" \(at line (\d+), column (\d+)\)$")
_BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong with a file, and where."""

    text: str
    line: int | None = None
    code: str = ""

    def of(self, path: Path) -> str:
        """Return it as one line that begins with the place, as editors expect it."""
        # A line end in a text of the user's would make two lines of it.
        text = with_code(" ".join(self.text.splitlines()), self.code)
        return f"{path}: {text}" if self.line is None else f"{path}:{self.line}: {text}"


class BrokenFile(Coded):
    """A file is not TOML, or no file that can be read."""

    def __init__(self, text: str, line: int | None = None, *, code: str = "") -> None:
        super().__init__(text, code=code)
        self.mistake = Mistake(text, line, code)


# System calls: close, fstat, newfstatat, openat, read.
def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file, without ever waiting for a writer.

    Raises:
        BrokenFile: it is no regular file, or too large.
        OSError: it cannot be read.
    """
    # NONBLOCK: else the open of a FIFO waits until some program writes into it.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise BrokenFile(
                "this is no regular file, which can be read again", code="S023"
            )
        with open(fd, "rb", closefd=False) as file:
            # Not the size that fstat() says: the file may grow while it is read.
            data = file.read(LARGEST + 1)
    finally:
        os.close(fd)
    if len(data) > LARGEST:
        raise BrokenFile(
            f"more than {LARGEST} bytes: is this the right file?", code="S024"
        )
    return data


class Document:
    """A parsed file.

    Args:
        data: the content of the file.

    Raises:
        BrokenFile: it is not TOML.
    """

    def __init__(self, data: bytes) -> None:
        self._text = _decode(data)
        self.tables: Mapping[str, Any] = _parse(self._text)

    def line(self, *key: str) -> int | None:
        """Return the line of a key, or of the table around it; None if not known."""
        for end in range(min(len(key), _DEEPEST), 0, -1):
            if (line := self._lines.get(key[:end])) is not None:
                return line
        return None

    @cached_property
    def _lines(self) -> Mapping[Key, int]:
        found: dict[Key, int] = {}
        table: Key = ()
        for line, text, content in _statements(self._text):
            key = _key(content)
            # No key begins with a bracket, and no heading with anything else.
            if text.lstrip().startswith("["):
                table = key
            else:
                key = (*table, *key)[:_DEEPEST]
            for end in range(1, len(key) + 1):
                found.setdefault(key[:end], line)
            if text.lstrip().startswith("["):
                # `device.web.x = 1` may stand before: show the heading all the same.
                found[key] = line
        return found


def _decode(data: bytes) -> str:
    try:
        # tomllib takes no other encoding than UTF-8, and TOML has no other.
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BrokenFile(
            f"byte {data[error.start]:#x} in line {line} is not UTF-8: "
            "save the file as UTF-8",
            line,
            code="S025",
        ) from error


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        # tomllib calls itself for each bracket.
        raise BrokenFile(
            "this is not TOML: too many nested brackets", code="S026"
        ) from None
    # TOMLDecodeError, and int()'s plain ValueError for more than 4300 digits.
    except ValueError as error:
        place = _PLACE.search(str(error))
        line = int(place[1]) if place else None
        hint = _hint(text.split("\n")[line - 1]) if line else ""
        raise BrokenFile(
            f"this is not TOML: {error}{hint}", line, code="S027"
        ) from error


def _hint(statement: str) -> str:
    """Return what to write in place of a value that lacks its quotes."""
    found = _STATEMENT.fullmatch(statement)
    if found is None:
        return ""
    key, value = found[1], found[2]
    word = _BOOLEANS.get(value.lower()) or value.lower()
    if word not in ("true", "false"):
        # JSON's quotes and escapes are TOML's as well.
        word = json.dumps(value, ensure_ascii=False)
    return f": write {key} = {word}"


def _statements(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield each statement's line, its text, and what it says alone."""
    lines = text.split("\n")
    start = 0
    while start < len(lines):
        # Of a statement that goes on in the next line no shorter part is TOML: a
        # bracket or a quote is still open.
        for end in range(start + 1, min(len(lines), start + _LONGEST) + 1):
            statement = "\n".join(lines[start:end])
            try:
                content = tomllib.loads(statement)
            except (ValueError, RecursionError):
                continue
            break
        else:
            return  # a statement that is too long: what follows has no line
        if content:
            yield start + 1, statement, content
        start = end


def _key(content: object) -> Key:
    """Return the key of a statement, which is all that the content has."""
    key: list[str] = []
    while len(key) < _DEEPEST:
        if isinstance(content, list) and len(content) == 1:
            content = content[0]  # of a heading in double brackets
        if not isinstance(content, dict) or len(content) != 1:
            break
        (part,) = content
        key.append(part)
        content = content[part]
    return tuple(key)


def is_array_of_tables(value: object) -> bool:
    """Whether a value was written with double brackets, or looks as if it were."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) for one in value)
    )


def is_number(value: object) -> bool:
    """Whether a value is an integer that TOML allows: 64 bits, and no boolean."""
    # In Python, bool is a kind of int.
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    # tomllib takes a hexadecimal number of any length, but str() raises ValueError for
    # one that has more than 4300 decimal digits.
    return -(2**63) <= value < 2**63


def shown(value: object) -> str:
    """Return a value for a message, shortened if it is long or deep."""
    try:
        # Not repr(): it raises RecursionError for the table that a dotted key of
        # thousands of parts makes.
        return reprlib.repr(value)
    except ValueError:  # a hexadecimal number with more than 4300 decimal digits
        return "(a number of thousands of digits)"


def quoted(key: str) -> str:
    """Return a key as TOML writes it: in quotes if it has more than bare characters."""
    return key if _BARE_KEY.fullmatch(key) else json.dumps(key)
