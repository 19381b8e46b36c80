# SPDX-License-Identifier: Apache-2.0
"""Build what is C in this environment, unless that build is there already.

    python tools/build_ring.py

pip does not build an editable install again when the C changes, so tox runs this
before the tests.  The C is the guest's ring, and the relays, guards and barriers in
`shared`.  After a build of either, a stamp in the environment holds a digest of all
that went into it, and of what came out.  Nothing is built only while both still match:
neither a changed source or compiler flag nor a module that another environment built in
the same checkout can pass for the tested one.
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
    modules: dict[str, str]
    """The folders in there that have C, and the module that is made of each."""

    @property
    def stamp(self) -> Path:
        """The file that says what the modules were built from."""
        return Path(sys.prefix) / f"{'-'.join(self.modules)}-stamp"


PARTS = (
    Part(
        ROOT / "shared",
        {"relay": "vhostpci_shared._relay", "memory": "vhostpci_shared._memory"},
    ),
    Part(ROOT / "guest", {"ring": "vhostpci_guest._ring"}),
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
    """Return a digest of what the modules are made from."""
    files = [part.project / "setup.py", part.project / "pyproject.toml"]
    for folder in part.modules:
        files += [path for path in (part.project / folder).iterdir() if path.is_file()]
    gcc = subprocess.run(
        ["gcc", "--version"], capture_output=True, text=True, check=True
    )
    flags = (os.environ.get(name, "") for name in ("CFLAGS", "LDFLAGS", "CC"))
    return _digest(files, sys.version, gcc.stdout, *flags)


def built(part: Part) -> str:
    """Return a digest of the modules that an import loads; empty if one is missing."""
    found = []
    for module in part.modules.values():
        try:
            spec = importlib.util.find_spec(module)
        except ModuleNotFoundError:  # the package itself is not installed
            return ""
        if not spec or not spec.origin:
            return ""
        found.append(Path(spec.origin))
    return _digest(found)


def is_current(part: Part) -> bool:
    """Whether the modules are those that these sources were last built to."""
    stamp = f"{sources(part)} {built(part)}\n"
    return part.stamp.exists() and part.stamp.read_text() == stamp


def build(part: Part) -> None:
    """Build the modules, and write the stamp."""
    before = sources(part)
    part.stamp.unlink(missing_ok=True)  # a build that fails must not leave the old one
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
    subprocess.run([*pip, "--force-reinstall", "-e", str(part.project)], check=True)
    importlib.invalidate_caches()
    after = built(part)
    if not after:
        sys.exit(f"build_ring: pip did not build {' and '.join(part.modules.values())}")
    part.stamp.write_text(f"{before} {after}\n")


if __name__ == "__main__":
    for one in PARTS:
        if not is_current(one):
            build(one)
