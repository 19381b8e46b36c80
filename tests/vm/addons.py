# SPDX-License-Identifier: Apache-2.0
"""Programs that few guests need: laid over the guest's base image, from the cache.

Of the packages that a program depends on, an add-on has only the libraries that the
program and its plug-ins are linked with, because a guest has its files in memory.
"""

import logging
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.vm import debs, rootfs, suites
from tests.vm.cache import cache_dir, entry, one_at_a_time, sums
from tests.vm.debian import CODENAME

log = logging.getLogger(__name__)

LIBRARIES = Path("usr/lib/x86_64-linux-gnu")


@dataclass(frozen=True, slots=True)
class Addon:
    """Some files of some packages, and the libraries that these files need."""

    packages: tuple[str, ...]
    files: tuple[str, ...]
    """Patterns, each of which matches one file at least."""

    @one_at_a_time()
    def tree(self) -> Path:
        """Return the directory whose files are laid over the base, from the cache."""
        archive = suites.archive(CODENAME)
        base = rootfs.packages()
        # The base has those, maybe in newer versions of another archive.
        found = [
            deb
            for deb in debs.resolve(self.packages, archive)
            if deb.package not in base
        ]

        def make(path: Path, _: Path) -> None:
            directory = cache_dir() / "debs"
            debs.download([deb.package for deb in found], found, directory, archive)
            log.info("unpacking %s for guests", " ".join(self.packages))
            with tempfile.TemporaryDirectory(dir=path.parent) as name:
                root = Path(name)
                debs.merge_usr(root)
                for deb in found:
                    debs.unpack(directory / deb.filename, root)
                _copy(root, _with_libraries(root, self.files), path)

        makers = sums([Path(__file__), Path(debs.__file__)])
        return entry("addons", [repr(self), repr(found), *makers], make, keep=4)


def _with_libraries(root: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    """Return files below `root`, and the libraries there that they are linked with."""
    wanted = [file for pattern in patterns for file in _matching(root, pattern)]
    seen: set[Path] = set()
    while wanted:
        file = wanted.pop()
        if file in seen:
            continue
        seen.add(file)
        yield file
        # A library that is not here is in the base.
        libraries = [root / LIBRARIES / name for name in _needed(file)]
        wanted += [library for library in libraries if library.exists()]


def _matching(root: Path, pattern: str) -> list[Path]:
    found = [*root.glob(pattern)]
    if not found:
        raise RuntimeError(f"no file of these packages is {pattern}")
    return found


def _needed(file: Path) -> list[str]:
    argv = ("readelf", "--dynamic", "--wide", str(file))
    # It is no ELF file: readelf says so, and a script needs no library.
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60).stdout
    return re.findall(r"\(NEEDED\).*\[(\S+)\]", said)


def _copy(root: Path, files: Iterable[Path], target: Path) -> None:
    """Copy files below `root`, each under the name that the others know it by."""
    copied: dict[int, Path] = {}
    for file in files:
        place = target / file.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        first = copied.setdefault(file.stat().st_ino, place)
        if first is place:
            shutil.copyfile(file, place)
            shutil.copymode(file, place)
        else:
            # DPDK's drivers have two names.  As two files, one would be loaded twice,
            # once as a library and once as a driver, and DPDK ends when it is.
            place.symlink_to(Path("/", first.relative_to(target)))


def _drivers(*names: str) -> tuple[str, ...]:
    """Return the patterns of drivers of DPDK's, which loads all that are there."""
    return tuple(f"{LIBRARIES}/dpdk/pmds-*/librte_{name}.so.[0-9]*.*" for name in names)


DPDK = Addon(
    ("dpdk-dev", "coreutils"),
    (
        "usr/bin/dpdk-testpmd",
        *("usr/bin/stdbuf", "usr/libexec/coreutils/libstdbuf.so"),
        *_drivers("bus_vdev", "mempool_ring", "net_tap", "net_vhost"),
    ),
)
"""testpmd; as a back-end it has `net_vhost`."""

KEXEC = Addon(("kexec-tools",), ("sbin/kexec",))

OPEN_VSWITCH = Addon(
    # The second has the driver of DPDK's memory pools, which the first only recommends.
    ("openvswitch-switch-dpdk", "librte-meta-mempool"),
    (
        "usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk",
        *("usr/sbin/ovsdb-server", "usr/bin/ovsdb-tool", "usr/bin/ovs-vsctl"),
        "usr/share/openvswitch/vswitch.ovsschema",
        *_drivers("mempool_ring"),
    ),
)
"""Open vSwitch with DPDK: its database, and the process that forwards packets."""
