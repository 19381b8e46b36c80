# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can correct; those that a peer causes are `ProtocolError`."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from vhostpci_shared.errors import Coded

if TYPE_CHECKING:
    from vhostpci_shared.toml_file import Mistake


class HostError(Coded):
    """This machine or its configuration prevents what the user asked for.

    The text names the thing, its value, and what to change: it is all that the
    user sees.
    """


class InUse(HostError):
    """A running program already uses what the daemon needs."""


class NoDaemon(HostError):
    """No daemon listens on a control socket."""


class NoAnswer(HostError):
    """A daemon ended the connection instead of answering: perhaps it has ended."""


class NotNow(HostError):
    """Something else is under way, which ends by itself: the same may work later."""


class FileError(HostError):
    """A configuration file has mistakes; the text has one line for each."""

    def __init__(self, path: Path, mistakes: Iterable["Mistake"]) -> None:
        super().__init__("\n".join(mistake.of(path) for mistake in mistakes))


def explain(what: str, path: Path, error: OSError) -> HostError:
    """Return `error` as one line that says what failed, and what to do."""
    advice = {
        "PermissionError": f"; run as its owner (we are uid {os.geteuid()}), "
        "or choose another directory",
        "FileNotFoundError": "; write it first, or name another file"
        if what == "read"
        else "; make the directory first",
    }.get(type(error).__name__, "")
    return HostError(
        f"cannot {what} {path}: {error.strerror or error}{advice}", code="H090"
    )
