# SPDX-License-Identifier: Apache-2.0
"""What a killed daemon leaves in the arena's place."""

import os
from pathlib import Path

from tests.fakes.windows import MIB
from vhostpci_shared import metadata as md

WINDOW = 32 * MIB
"""The size of the arena of the fixture `config`."""


def leave_behind(path: Path, *, size: int = WINDOW, ram: bytes = b"master") -> None:
    """Make what a killed daemon leaves: an arena with metadata, and a master's RAM."""
    path.write_bytes(ram)
    os.truncate(path, size)
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), md.MAGIC.ljust(md.SIZE), size - md.SIZE)
    path.chmod(0o600)
