# SPDX-License-Identifier: Apache-2.0
"""Debian's kernel headers, unpacked where modules are built with them.

They are not installed: KDIR=<directory> is what a build needs to know.
"""

import logging
import os
from pathlib import Path

from tests.vm import debs
from tests.vm.cache import (
    cache_dir,
    digest,
    discard_old,
    fresh,
    one_at_a_time,
    sums,
)
from tests.vm.kernels import THIS_DEBIAN, Kernel

log = logging.getLogger(__name__)


@one_at_a_time()
def build_directory(kernel: Kernel = THIS_DEBIAN) -> Path:
    """Return the directory that /lib/modules/<release>/build would be a link to."""
    return unpacked(kernel)


def unpacked(kernel: Kernel) -> Path:
    """Do what `build_directory` does; the caller holds the cache's lock."""
    if made := kernel.build_directory():
        return made
    packages, archive = kernel.header_packages(), kernel.archive()
    found = debs.locate(packages, archive)
    tree = cache_dir() / "headers" / digest([repr(found), *sums([Path(__file__)])])
    if not tree.exists():
        debs.download(packages, found, cache_dir() / "debs", archive)
        log.info("unpacking the headers of Linux %s", kernel.release())
        with fresh(tree) as path:
            path.mkdir()
            for deb in found:
                debs.unpack(cache_dir() / "debs" / deb.filename, path)
            _move(path, tree)
        discard_old(tree.parent.glob("*"), keep=6)
    os.utime(tree)  # in use: the last to be discarded
    return tree / f"usr/src/linux-headers-{kernel.release()}"


def _move(root: Path, place: Path) -> None:
    """Make the headers' makefiles include each other here instead of in /usr/src."""
    for makefile in root.glob("usr/src/linux-headers-*/Makefile"):
        text = makefile.read_text()
        makefile.write_text(text.replace("/usr/src/", f"{place}/usr/src/"))
