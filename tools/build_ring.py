# SPDX-License-Identifier: Apache-2.0
"""Build the guest's ring in this environment, unless that build is there already.

    python tools/build_ring.py

pip does not build an editable install again when the C changes, so tox runs this
before the tests.  After a build, a stamp in the environment holds a digest of all that
went into the ring, and of the module that came out.  Nothing is built only while both
still match: neither a changed source or compiler flag nor a module that another
environment built in the same checkout can pass for the tested one.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

GUEST = Path(__file__).resolve().parents[1] / "guest"
STAMP = Path(sys.prefix) / "ring-stamp"


def _digest(paths: Iterable[Path], *words: str) -> str:
    """Return a digest of files, their names included, and of words."""
    found = hashlib.sha256("\0".join(words).encode())
    for path in sorted(paths):
        # The length keeps the end of one file from passing for the start of the next.
        data = path.read_bytes()
        found.update(f"\0{path.name}\0{len(data)}\0".encode() + data)
    return found.hexdigest()


def sources() -> str:
    """Return a digest of what the ring is made from."""
    files = [GUEST / "setup.py", GUEST / "pyproject.toml"]
    files += [path for path in (GUEST / "ring").iterdir() if path.is_file()]
    gcc = subprocess.run(
        ["gcc", "--version"], capture_output=True, text=True, check=True
    )
    flags = (os.environ.get(name, "") for name in ("CFLAGS", "LDFLAGS", "CC"))
    return _digest(files, sys.version, gcc.stdout, *flags)


def module() -> str:
    """Return a digest of the module that `import vhostpci_guest._ring` loads."""
    try:
        spec = importlib.util.find_spec("vhostpci_guest._ring")
    except ModuleNotFoundError:  # vhostpci_guest itself is not installed
        return ""
    return _digest([Path(spec.origin)]) if spec and spec.origin else ""


def is_current() -> bool:
    """Whether the module is the one that these sources were last built to."""
    return STAMP.exists() and STAMP.read_text() == f"{sources()} {module()}\n"


def build() -> None:
    """Build the ring, and write the stamp."""
    before = sources()
    STAMP.unlink(missing_ok=True)  # a build that fails must not leave the old stamp
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
    subprocess.run([*pip, "--force-reinstall", "-e", str(GUEST)], check=True)
    importlib.invalidate_caches()
    built = module()
    if not built:
        sys.exit("build_ring: pip built no module vhostpci_guest._ring")
    STAMP.write_text(f"{before} {built}\n")


if __name__ == "__main__":
    if not is_current():
        build()
