# SPDX-License-Identifier: Apache-2.0
"""The lines of a log that say how a guest or a program ended."""

import re

COUNT = 15

_FATAL = re.compile(r"Kernel panic|\bBUG: |\bOops: |Out of memory: ")
"""What a kernel says when it ends itself or a program."""


def lines(text: str) -> list[str]:
    """Return the last lines, and before them each line that names a cause of death.

    A kernel that panics prints the reason first and a page of addresses below it, and a
    guest that has rebooted since has printed more.
    """
    said = text.splitlines()
    if not any(line.strip() for line in said):
        return ["(nothing)"]
    fatal = [line for line in said[:-COUNT] if _FATAL.search(line)]
    return [*fatal[-COUNT:], *said[-COUNT:]]
