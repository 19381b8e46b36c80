# SPDX-License-Identifier: Apache-2.0
"""Errors that a user reads, each with a code that docs/errors.md explains.

The code of an error never changes its meaning, while its text may become better from
version to version: a program, or a search, goes by the code.  `tools/errors.py` gives
the codes.  The text of an error is without its code, which is added where the text is
printed.
"""

from typing import NamedTuple


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


class Problem(NamedTuple):
    """Why an option cannot be used as it was given, although its value is valid."""

    option: str
    text: str
    code: str = ""


def code_of(error: object) -> str:
    """Return the code of an error; "" if it has none."""
    return error.code if isinstance(error, Coded) else ""


def with_code(text: object, code: str) -> str:
    """Return the text of an error as it is printed: with its code at the end."""
    return f"{text} [{code}]" if code else f"{text}"


def told(error: object) -> str:
    """Return an error as it is printed."""
    return with_code(error, code_of(error))
