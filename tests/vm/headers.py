# SPDX-License-Identifier: Apache-2.0
"""Debian's kernel headers, unpacked where modules are built with them.

They are not installed: KDIR=<directory> is what a build needs to know.
"""

import logging
from pathlib import Path

from tests.vm import debs
from tests.vm.cache import cache_dir, entry, one_at_a_time, sums
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

    def unpack(path: Path, tree: Path) -> None:
        debs.download(packages, found, cache_dir() / "debs", archive)
        log.info("unpacking the headers of Linux %s", kernel.release())
        for deb in found:
            debs.unpack(cache_dir() / "debs" / deb.filename, path)
        _move(path, tree)

    inputs = [repr(found), *sums([Path(__file__)])]
    tree = entry("headers", inputs, unpack, keep=6)
    return tree / f"usr/src/linux-headers-{kernel.release()}"


def _move(root: Path, place: Path) -> None:
    """Make the headers' makefiles include each other here instead of in /usr/src."""
    for makefile in root.glob("usr/src/linux-headers-*/Makefile"):
        text = makefile.read_text()
        makefile.write_text(text.replace("/usr/src/", f"{place}/usr/src/"))
