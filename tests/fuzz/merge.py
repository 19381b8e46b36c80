# SPDX-License-Identifier: Apache-2.0
"""Take new inputs into the ring's corpus: python -m tests.fuzz.merge DIRECTORY...

Afterwards corpus/found has no more inputs than it takes to reach all that any input
reaches, of it, of corpus/ring and of those directories.  How often something is reached
counts too, by powers of two.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.build import BY_HAND, FOUND, build_guided


def merge(directories: list[Path]) -> None:
    """Replace corpus/found by the inputs that are needed, of it and the directories."""
    with tempfile.TemporaryDirectory() as name:
        program = build_guided(Path(name) / "fuzz")
        merged = Path(name) / "merged"
        merged.mkdir()
        options = ["-set_cover_merge=1", "-detect_leaks=0"]
        subprocess.run(
            [program, *options, merged, BY_HAND, FOUND, *directories], check=True
        )
        shutil.rmtree(FOUND)
        shutil.copytree(merged, FOUND)


if __name__ == "__main__":
    merge([Path(name) for name in sys.argv[1:]])
