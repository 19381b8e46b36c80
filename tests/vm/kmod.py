# SPDX-License-Identifier: Apache-2.0
"""kmod/ as a module for one of Debian's kernels, made as a user makes it.

Built in a copy: modpost and its like write beside the sources, and others build too.

    python -m tests.vm.kmod     what compiler and sparse object to, with Debian's 6.1
"""

import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.vm import headers
from tests.vm.cache import cache_dir, digest, discard_old, fresh, key_of, one_at_a_time
from tests.vm.kernels import BOOKWORM, Kernel

log = logging.getLogger(__name__)

STRICT = ("W=1", "KCFLAGS=-Werror")
"""Every warning of the compiler is an error."""

SPARSE = ("C=2", "CF=-Wsparse-error")
"""And sparse looks at what is compiled, where the headers come with its script."""

NAME = "uio_vhostpci"
SOURCE = Path(__file__).parents[2] / "kmod"

# What builds leave behind, and what is not built.
NOT_SOURCE = shutil.ignore_patterns(
    *("*.o", "*.ko", "*.mod", "*.mod.c", ".*.cmd", ".tmp*", "*.order", "*.symvers"),
    "*.md",
)


class BuildError(Exception):
    """The module was not built, and what make and the compiler said."""


@one_at_a_time()
def build(kernel: Kernel = BOOKWORM) -> Path:
    """The module's file, from the cache where neither sources nor headers changed."""
    directory = headers.unpacked(kernel)
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "kmod"
        copy_sources(copy)
        key = digest([str(directory), key_of(copy)])
        target = cache_dir() / "modules" / f"{kernel.release()}-{key}"
        if not target.exists():
            log.info("building %s for Linux %s", NAME, kernel.release())
            with fresh(target) as path:
                shutil.copytree(copy, path)
                make(path, directory)
            discard_old(target.parent.glob("*"), keep=8)
    return target / f"{NAME}.ko"


def check(kernel: Kernel = BOOKWORM) -> None:
    """Refuse a module that compiler or sparse object to."""
    directory = headers.build_directory(kernel)
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "kmod"
        copy_sources(copy)
        report = make(copy, directory, *STRICT, *SPARSE)
    if "CHECK" not in report:
        raise BuildError(f"sparse did not run; tools/setup installs it:\n{report}")


def copy_sources(target: Path) -> None:
    """Copy what the module is made of to a directory that is not there yet."""
    shutil.copytree(SOURCE, target, ignore=NOT_SOURCE)


def make(directory: Path, kdir: Path, *options: str) -> str:
    """Build what lies in a directory; returns what make and the compiler said."""
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
