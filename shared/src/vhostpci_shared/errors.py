# SPDX-License-Identifier: Apache-2.0
"""Errors that a user reads, each with a code that docs/errors.md explains.

The code of an error never changes its meaning, while its text may become better from
version to version: a program, or a search, goes by the code.  `tools/errors.py` gives
the codes.  The text of an error is without its code, which is added where the text is
printed.
"""

from typing import NamedTuple, Self


class Coded(Exception):
    """An error with a code.

    Args:
        text: what is wrong, and what to do.
        code: as "H017"; that of another error, if this one only passes it on.
    """

    code: str = ""

    def __init__(self, text: str, *, code: str = "") -> None:
        super().__init__(text)
        self.code = code


class BadValue(Coded, ValueError):
    """A user's text is no value of an option; it says what to write."""


class Said(str):
    """What was said of an error that is no exception any more: it keeps the code."""

    __slots__ = ("code",)
    code: str

    def __new__(cls, text: object, code: str = "") -> Self:
        made = super().__new__(cls, text)
        made.code = code
        return made


class Problem(NamedTuple):
    """Why an option cannot be used as it was given, although its value is valid."""

    option: str
    text: str
    code: str = ""


def code_of(error: object) -> str:
    """Return the code of an error, or of what was said of one; "" if it has none."""
    return error.code if isinstance(error, Coded | Said) else ""


def said(error: object) -> Said:
    """Return the text of an error, with its code for the one who prints it."""
    return Said(error, code_of(error))


def with_code(text: object, code: str) -> str:
    """Return the text of an error as it is printed: with its code at the end."""
    return f"{text} [{code}]" if code else f"{text}"


def told(error: object) -> str:
    """Return an error as it is printed."""
    return with_code(error, code_of(error))
