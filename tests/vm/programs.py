# SPDX-License-Identifier: Apache-2.0
"""Programs of any suite of Debian's, run from its packages, which are not installed.

The packages, with all that they depend on, are unpacked into the cache.  A program runs
by the dynamic linker of its packages, with their libraries: its sockets and files have
the same paths as ours, nothing is mounted, and what was started is the program itself.
"""

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.vm import debs, suites
from tests.vm.cache import cache_dir, entry, one_at_a_time, sums
from tests.vm.debian import CODENAME

log = logging.getLogger(__name__)

LIBRARIES = "usr/lib/x86_64-linux-gnu"
NOT_NEEDED = ("usr/share/doc", "usr/share/locale", "usr/share/man", "usr/include")


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Packages that lie unpacked in the cache."""

    root: Path
    packages: tuple[debs.Deb, ...]
    ours: bool
    """Whether they are of the release of Debian that this machine has."""

    def version(self, package: str) -> str:
        """Return the version of one of the packages."""
        (found,) = [deb for deb in self.packages if deb.package == package]
        # In the name of a package's file the colon of a version is written as %3a.
        return re.split("_|%3a", found.filename)[-2]

    def file(self, pattern: str) -> Path:
        """Return the one file that matches a pattern."""
        found = [*self.root.glob(pattern)]
        if len(found) != 1:
            raise RuntimeError(f"not one file in {self.root} is {pattern}: {found}")
        return found[0]

    def command(self, program: str) -> list[str]:
        """Return the words that run a program, such as ``usr/bin/passt``."""
        libraries = self.root / LIBRARIES
        # DPDK loads all drivers that this machine has in the same version, and ends if
        # that loads a library a second time, from another place.
        first = (f"/{LIBRARIES}",) if self.ours else ()
        path = ":".join([*first, str(libraries)])
        return [
            *(str(libraries / "ld-linux-x86-64.so.2"), "--argv0", Path(program).name),
            *("--library-path", path, str(self.root / program)),
        ]


@one_at_a_time("programs.lock")
def unpacked(suite: str, *packages: str) -> Unpacked:
    """Return packages of a suite, and all that they depend on, from the cache."""
    archive = suites.archive(suite)
    found = debs.resolve(packages, archive)

    def unpack(path: Path, _: Path) -> None:
        directory = cache_dir() / "debs"
        with one_at_a_time():  # others download to that directory
            debs.download([deb.package for deb in found], found, directory, archive)
        log.info("unpacking %s of Debian's %s", " ".join(packages), suite)
        debs.merge_usr(path)
        for deb in found:
            debs.unpack(directory / deb.filename, path)
        for name in NOT_NEEDED:
            shutil.rmtree(path / name, ignore_errors=True)

    inputs = [repr(found), *sums([Path(__file__)])]
    root = entry("programs", inputs, unpack, keep=8)
    return Unpacked(root, tuple(found), suite == CODENAME)
