# SPDX-License-Identifier: Apache-2.0
"""checkpatch, the kernel's style checker, from the package of the kernel's sources."""

import logging
import subprocess
import tempfile
from pathlib import Path

from tests.vm import debs
from tests.vm.cache import cache_dir, digest, fresh, one_at_a_time

log = logging.getLogger(__name__)

PACKAGE = "linux-source-6.1"
FILES = ("checkpatch.pl", "const_structs.checkpatch", "spelling.txt")


@one_at_a_time()
def scripts() -> Path:
    """The directory with checkpatch.pl and what it reads, from the cache if there."""
    (source,) = debs.locate([PACKAGE])
    target = cache_dir() / "checkpatch" / digest([repr(source)])
    if not target.exists():
        with fresh(target) as path, tempfile.TemporaryDirectory() as name:
            path.mkdir()
            debs.download([PACKAGE], [source], Path(name))
            debs.unpack(Path(name) / source.filename, Path(name))
            archive = Path(name) / f"usr/src/{PACKAGE}.tar.xz"
            _extract(archive, path)
    return target


def report(*files: Path) -> str:
    """Return its remarks with all checks turned on."""
    script = scripts() / "checkpatch.pl"
    done = subprocess.run(
        ["perl", script, "--strict", "--no-tree", "--terse", "--file", *files],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return done.stdout


def _extract(archive: Path, target: Path) -> None:
    names = [f"{PACKAGE}/scripts/{name}" for name in FILES]
    # --occurrence: it need not be read to its end.
    unpack = ["tar", "-xJ", "-f", str(archive), "-C", str(target)]
    options = ["--strip-components=2", "--occurrence=1"]
    subprocess.run([*unpack, *options, *names], check=True, timeout=600)
