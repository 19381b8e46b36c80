# SPDX-License-Identifier: Apache-2.0
"""Whole outputs of a command, each in a separate file, which people have looked at.

After a wanted change, `WRITE_GOLDEN=1 pytest ...` writes the files; look at the
difference before you commit it.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from vhostpci_shared.terminal import Terminal

WRITE = "WRITE_GOLDEN"
TERMINALS = {
    "80": Terminal(80),
    "40": Terminal(40),
    "pipe": Terminal(None),
    "color": Terminal(80, color=True),
}
"""A terminal, a narrow one, none, and one with colours."""


def check(path: Path, lines: str | Iterable[str]) -> None:
    """Compare an output with its file."""
    text = lines if isinstance(lines, str) else "\n".join(lines)
    text = text.removesuffix("\n") + "\n"
    if os.environ.get(WRITE):
        path.write_text(text)
    assert text == path.read_text(), f"see {path}; {WRITE}=1 writes it"
