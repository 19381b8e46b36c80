# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can mend; a peer's own are `ProtocolError`."""

import os
from pathlib import Path


class HostError(Exception):
    """Something of this machine or its configuration stands in the way.

    The text names the thing, its value, and what to change: it is all that the
    user sees.
    """


class InUse(HostError):
    """Another program that runs has what we need."""


class NoDaemon(HostError):
    """Nobody listens on a control socket."""


def explain(what: str, path: Path, error: OSError) -> HostError:
    """Return `error` as one line that says what we were doing, and what mends it."""
    mend = {
        "PermissionError": f"; run as its owner (we are uid {os.geteuid()}), "
        "or choose another directory",
        "FileNotFoundError": "; make the directory first",
    }.get(type(error).__name__, "")
    return HostError(f"cannot {what} {path}: {error.strerror}{mend}")
