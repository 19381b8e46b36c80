# SPDX-License-Identifier: Apache-2.0
"""The keeper's lines, in the form of the daemon's log.

The keeper imports this module, which imports nothing of ours: not the options of the
log, since what the keeper imports stays as it was when it was started.
"""

import json
import os
import select
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise

STDERR = 2


def form_of(arguments: Sequence[str]) -> str:
    """Return the form that the daemon's log has: "text", "json" or "journal".

    Args:
        arguments: the daemon's, which has checked them.
    """
    found = "journal" if _leads_to_journal() else "text"
    for word, after in pairwise([*arguments, ""]):
        name, equals, value = word.partition("=")
        if name == "--log-format":
            found = value if equals else after
    return found


def _leads_to_journal() -> bool:
    try:
        stderr = os.fstat(STDERR)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stderr.st_dev}:{stderr.st_ino}"


def line(text: str, form: str) -> bytes:
    """Return a warning of the keeper's as a line of the log."""
    if form == "journal":
        return f"<4>keeper: {text}\n".encode()
    if form == "json":
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()),
            "level": "warning",
            "program": "vhostpci-host",
            "source": "keeper",
            "message": f"keeper: {text}",
        }
        return (json.dumps(entry) + "\n").encode()
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"{now} W keeper: {text}\n".encode()


def say(text: str) -> None:
    """Write a warning to stderr, without waiting for what reads it."""
    data = line(text, form_of(sys.argv[1:]))
    # The daemon's log goes there, too.  Nothing may make the keeper wait, or end it:
    # the disk may be full, and the reader of a pipe may have ended.
    with suppress(OSError):
        if select.select([], [STDERR], [], 0)[1]:
            os.write(STDERR, data)
