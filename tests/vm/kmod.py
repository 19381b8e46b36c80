# SPDX-License-Identifier: Apache-2.0
"""kmod/ as a module for one of Debian's kernels, built as a user builds it.

It is built in a copy, since make writes beside the sources, and other tests build too.

    python -m tests.vm.kmod     check kmod/ with compiler and sparse, for Debian's 6.1
"""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.vm import chroot, headers
from tests.vm.cache import cache_dir, digest, discard_old, fresh, key_of, one_at_a_time
from tests.vm.kernels import THIS_DEBIAN, Kernel

log = logging.getLogger(__name__)

STRICT = ("W=1", "KCFLAGS=-Werror")
"""Every warning of the compiler is an error."""

SPARSE = ("C=2", "CF=-Wsparse-error")
"""Run sparse on each file that is compiled."""

NO_SPARSE = "/scripts/checker-valid.sh:"
"""What is in make's output where sparse is left out because the headers lack a script.

From 7.x on, Linux asks that script whether sparse is new enough for its headers, which
Debian 13's 0.6.4 is not: it does not know __typeof_unqual__().
"""

NAME = "uio_vhostpci"
SOURCE = Path(__file__).parents[2] / "kmod"

# Files that a build leaves behind, and files that are not part of a build.
NOT_SOURCE = shutil.ignore_patterns(
    *("*.o", "*.ko", "*.mod", "*.mod.c", ".*.cmd", ".tmp*", "*.order", "*.symvers"),
    "*.md",
)


class BuildError(Exception):
    """The module was not built; the text is the output of make."""


# The headers' package brings the compiler that its kernel was built with.
TOOLS = (
    *("base-files", "bash", "coreutils", "dash", "diffutils", "findutils", "grep"),
    *("linux-headers-amd64", "make", "mawk", "sed"),
)
"""Packages to build with the compiler of another Debian."""


def build(kernel: Kernel = THIS_DEBIAN) -> Path:
    """Return the module's file, from the cache if sources and headers are the same.

    A kernel of another Debian needs that one's compiler, a download of 250 MB.
    """
    if kernel.has_our_compiler():
        directory = headers.build_directory(kernel)
        return _built(kernel, directory, lambda path: make(path, directory))
    root = chroot.make(TOOLS, kernel.archive())
    return _built(kernel, root, lambda path: make_in(root, path, kernel))


@one_at_a_time()
def _built(kernel: Kernel, tools: Path, run: Callable[[Path], str]) -> Path:
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "kmod"
        copy_sources(copy)
        key = digest([str(tools), key_of(copy)])
        target = cache_dir() / "modules" / f"{kernel.release()}-{key}"
        if not target.exists():
            log.info("building %s for Linux %s", NAME, kernel.release())
            with fresh(target) as path:
                shutil.copytree(copy, path)
                run(path)
            discard_old(target.parent.glob("*"), keep=8)
        os.utime(target)  # in use: the last to be discarded
    return target / f"{NAME}.ko"


def check(kernel: Kernel = THIS_DEBIAN) -> None:
    """Raise BuildError if the compiler has a warning, or sparse where it can run."""
    directory = headers.build_directory(kernel)
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "kmod"
        copy_sources(copy)
        report = make(copy, directory, *STRICT, *SPARSE)
    if "CHECK" not in report and NO_SPARSE not in report:
        raise BuildError(f"sparse did not run; tools/setup installs it:\n{report}")


def copy_sources(target: Path) -> None:
    """Copy the module's sources to a directory that does not exist yet."""
    shutil.copytree(SOURCE, target, ignore=NOT_SOURCE)


def make_in(root: Path, directory: Path, kernel: Kernel, *options: str) -> str:
    """Build the module in a directory, by the tools of another Debian in a root."""
    release = f"KERNEL={kernel.release()}"
    done = chroot.run(root, directory, "make", release, *options)
    if done.returncode:
        raise BuildError(f"{NAME} does not build in {root}:\n{done.stdout}")
    return done.stdout


def make(directory: Path, kdir: Path, *options: str) -> str:
    """Build the module in a directory; return the output of make."""
    done = subprocess.run(
        ["make", "-C", str(directory), f"KDIR={kdir}", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise BuildError(f"{NAME} does not build with {kdir}:\n{done.stdout}")
    return done.stdout


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        check()
    except BuildError as error:
        sys.exit(str(error))
