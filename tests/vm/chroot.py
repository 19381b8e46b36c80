# SPDX-License-Identifier: Apache-2.0
"""A root directory of another suite's packages, to build with its compiler.

The tools of a newer Debian need its C library as well.  As in a guest's image,
packages are unpacked, not installed: their scripts do not run.
"""

import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.vm import debs
from tests.vm.cache import cache_dir, entry, one_at_a_time, sums

log = logging.getLogger(__name__)

# What packages leave to their scripts.
LINKS = {"usr/bin/sh": "dash", "usr/bin/awk": "mawk"}

BUILDS = "build"
"""The place in the root where the directory to build in is mounted."""


@one_at_a_time()
def make(packages: Sequence[str], archive: debs.Archive) -> Path:
    """A root with ``packages`` and all that they depend on, from the cache if there."""
    found = debs.resolve(packages, archive)

    def unpack(root: Path, _: Path) -> None:
        directory = cache_dir() / "debs"
        debs.download([deb.package for deb in found], found, directory, archive)
        log.info("unpacking %d packages to build with", len(found))
        for name in ("dev", "proc", "tmp", BUILDS):
            (root / name).mkdir()
        debs.merge_usr(root)
        for deb in found:
            debs.unpack(directory / deb.filename, root)
        for name, target in LINKS.items():
            if not (root / name).exists():
                (root / name).symlink_to(target)
        if (root / "usr/bin/python3").exists():
            _compile_python(root)

    makers = sums([Path(__file__), Path(debs.__file__)])
    return entry("chroots", [repr(found), *makers], unpack, keep=4)


def _compile_python(root: Path) -> None:
    """Do what the packages' scripts do: a Python without byte code starts slowly."""
    argv = ("python3", "-m", "compileall", "-q", "/usr/lib")
    subprocess.run(["chroot", str(root), *argv], timeout=600)


def run(root: Path, directory: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a root; `directory` is mounted there as /build."""
    # A mount namespace, so that the mounts end with the command.
    script = (
        'for name in dev proc; do mount --rbind "/$name" "$0/$name" || exit; done; '
        'mount --bind "$1" "$0/build" && shift && exec chroot "$0" env -C /build "$@"'
    )
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, str(root), str(directory), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
    )
