# SPDX-License-Identifier: Apache-2.0
"""Take new inputs into a corpus: python -m tests.fuzz.merge EDGE DIRECTORY...

EDGE is `ring`, or one of inputs.EDGES.  Its corpus then has no more inputs than it
takes to reach all that any input reaches, of it and of those directories.  For `ring`,
how often something is reached counts too, by powers of two, and corpus/ring stays.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.build import BY_HAND, FOUND, build_guided
from tests.fuzz.inputs import EDGES, unpack, write


def merge_ring(work: Path, directories: list[Path]) -> None:
    """Replace corpus/found by the inputs that are needed, of it and the directories."""
    program = build_guided(work / "fuzz")
    merged = work / "merged"
    merged.mkdir()
    options = ["-set_cover_merge=1", "-detect_leaks=0"]
    subprocess.run(
        [program, *options, merged, BY_HAND, FOUND, *directories], check=True
    )
    shutil.rmtree(FOUND)
    shutil.copytree(merged, FOUND)


def merge_edge(edge: str, work: Path, directories: list[Path]) -> None:
    """Replace an edge's inputs by those that are needed, of it and the directories."""
    merged = work / "merged"
    merged.mkdir()
    program = [sys.executable, "-m", "tests.fuzz.guided", edge]
    old = unpack(edge, work / "old")
    subprocess.run(
        [*program, "-set_cover_merge=1", merged, old, *directories], check=True
    )
    write(edge, [path.read_bytes() for path in merged.iterdir()])


def main(edge: str, *names: str) -> None:
    """Merge what the command line says."""
    with tempfile.TemporaryDirectory() as work:
        directories = [Path(name) for name in names]
        if edge == "ring":
            merge_ring(Path(work), directories)
        elif edge in EDGES:
            merge_edge(edge, Path(work), directories)
        else:
            sys.exit(f"{edge}: write ring or {', '.join(EDGES)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
