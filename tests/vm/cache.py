# SPDX-License-Identifier: Apache-2.0
"""What is made once and kept: packages, images, wheels, headers, modules.

Each thing lies under a key made of all that went into it, so nothing there is ever
changed: it is made, used, and discarded when newer ones took its place.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path


def cache_dir() -> Path:
    """Where everything lies that may be deleted and made again."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("VHOSTPCI_CACHE") or default / "vhostpci")


@contextmanager
def one_at_a_time(lock: str = "lock") -> Iterator[None]:
    """Let no other process make what is in the cache meanwhile.

    Tests run in several processes: what both need is made by the first one.
    """
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / lock).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def fresh(target: Path) -> Iterator[Path]:
    """A path to build at, which becomes ``target`` only when all went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="new-") as name:
        path = Path(name) / target.name
        yield path
        os.utime(path)  # of what an archive had, it would be an old one
        with suppress(OSError) if target.exists() else nullcontext():
            path.rename(target)  # unless somebody else was quicker


IN_USE = 3600.0
"""Seconds for which what was made or taken from the cache counts as in use."""


def discard_old(paths: Iterable[Path], keep: int) -> None:
    """Delete all but the ``keep`` newest, and those that may be in use.

    Other checkouts share the cache.  A QEMU that one of them is about to start needs
    its image, however many newer ones there are.
    """
    old = sorted(paths, key=lambda path: path.stat().st_mtime)[:-keep]
    for path in old:
        if time.time() - path.stat().st_mtime < IN_USE:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def digest(lines: Iterable[str]) -> str:
    """A key for all of ``lines``."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def sums(paths: Iterable[Path]) -> list[str]:
    """Keys for the names and bytes of files."""
    return [digest([path.name, path.read_bytes().hex()]) for path in paths]


def key_of(tree: Path) -> str:
    """A key for all files below a directory."""
    files = sorted(path for path in tree.rglob("*") if path.is_file())
    return digest(f"{path.relative_to(tree)} {path.read_bytes()!r}" for path in files)
