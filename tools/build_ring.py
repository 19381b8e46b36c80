# SPDX-License-Identifier: Apache-2.0
"""Build what is C in this environment, unless that build is there already.

    python tools/build_ring.py

pip does not build an editable install again when the C changes, so tox runs this
before the tests.  The C is the guest's ring, and the relays in `shared`.  After a
build of either, a stamp in the environment holds a digest of all that went into it, and
of the module that came out.  Nothing is built only while both still match: neither a
changed source or compiler flag nor a module that another environment built in the same
checkout can pass for the tested one.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Part:
    """A distribution with C in it."""

    project: Path
    """The folder of its setup.py."""
    folder: str
    """Where in there the C is."""
    module: str
    """What is made of it."""

    @property
    def stamp(self) -> Path:
        """The file that says what the module was built from."""
        return Path(sys.prefix) / f"{self.folder}-stamp"


PARTS = (
    Part(ROOT / "shared", "relay", "vhostpci_shared._relay"),
    Part(ROOT / "guest", "ring", "vhostpci_guest._ring"),
)


def _digest(paths: Iterable[Path], *words: str) -> str:
    """Return a digest of files, their names included, and of words."""
    found = hashlib.sha256("\0".join(words).encode())
    for path in sorted(paths):
        # The length keeps the end of one file from passing for the start of the next.
        data = path.read_bytes()
        found.update(f"\0{path.name}\0{len(data)}\0".encode() + data)
    return found.hexdigest()


def sources(part: Part) -> str:
    """Return a digest of what the module is made from."""
    files = [part.project / "setup.py", part.project / "pyproject.toml"]
    files += [path for path in (part.project / part.folder).iterdir() if path.is_file()]
    gcc = subprocess.run(
        ["gcc", "--version"], capture_output=True, text=True, check=True
    )
    flags = (os.environ.get(name, "") for name in ("CFLAGS", "LDFLAGS", "CC"))
    return _digest(files, sys.version, gcc.stdout, *flags)


def module(part: Part) -> str:
    """Return a digest of the module that an import loads; empty without one."""
    try:
        spec = importlib.util.find_spec(part.module)
    except ModuleNotFoundError:  # the package itself is not installed
        return ""
    return _digest([Path(spec.origin)]) if spec and spec.origin else ""


def is_current(part: Part) -> bool:
    """Whether the module is the one that these sources were last built to."""
    stamp = f"{sources(part)} {module(part)}\n"
    return part.stamp.exists() and part.stamp.read_text() == stamp


def build(part: Part) -> None:
    """Build the module, and write the stamp."""
    before = sources(part)
    part.stamp.unlink(missing_ok=True)  # a build that fails must not leave the old one
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
    subprocess.run([*pip, "--force-reinstall", "-e", str(part.project)], check=True)
    importlib.invalidate_caches()
    built = module(part)
    if not built:
        sys.exit(f"build_ring: pip built no module {part.module}")
    part.stamp.write_text(f"{before} {built}\n")


if __name__ == "__main__":
    for one in PARTS:
        if not is_current(one):
            build(one)
