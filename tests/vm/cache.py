# SPDX-License-Identifier: Apache-2.0
"""The cache of packages, images, wheels, headers and modules.

The name of each entry has a key computed from all its inputs, so an entry is never
changed: other inputs make another entry, and old entries are deleted.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path


def cache_dir() -> Path:
    """Return the cache's directory; all that is in it can be made again."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("VHOSTPCI_CACHE") or default / "vhostpci")


@contextmanager
def one_at_a_time(lock: str = "lock") -> Iterator[None]:
    """Hold the cache's lock while the block runs.

    Tests run in several processes: the first one makes what all of them need.
    """
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / lock).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def fresh(target: Path) -> Iterator[Path]:
    """A path to build at, which is renamed to ``target`` if the block succeeds."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="new-") as name:
        path = Path(name) / target.name
        yield path
        os.utime(path)  # an archive may have given it an old time
        with suppress(OSError) if target.exists() else nullcontext():
            path.rename(target)  # unless another process was quicker


def entry(
    kind: str, inputs: Iterable[str], make: Callable[[Path, Path], None], *, keep: int
) -> Path:
    """Return the cached directory that has these inputs; make it if it is not there.

    The caller holds the cache's lock.

    Args:
        kind: the directory of the cache that it is in.
        inputs: all that it is made of.
        make: gets an empty directory to fill, and the place where that will lie.
        keep: how many of its kind stay.
    """
    place = cache_dir() / kind / digest(inputs)
    if not place.exists():
        with fresh(place) as path:
            path.mkdir()
            make(path, place)
        discard_old(place.parent.glob("*"), keep=keep)
    os.utime(place)  # in use: the last to be discarded
    return place


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
