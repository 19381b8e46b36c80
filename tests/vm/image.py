# SPDX-License-Identifier: Apache-2.0
"""A stock-Debian guest: the kernel's package, and an initramfs from packages.

Nothing is installed on this machine and no boot loader is involved: QEMU gets the
kernel and one file of two cpio archives.

    base      Debian's files, the guest's Python dependencies; half a minute to make
    overlay   our init, command server and wheels; a second to make

Both lie in the cache under a key made of all that went into them, so a change of
our code costs a second, and a security update of Debian's a new base.

The archives are not compressed: under TCG unpacking costs more than reading.
"""

import logging
import lzma
import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.vm import debs, rootfs
from tests.vm.cache import cache_dir, digest, discard_old, fresh, one_at_a_time, sums
from tests.vm.cpio import CpioWriter

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
BASE_SOURCES = [
    *(HERE / name for name in ("image.py", "rootfs.py", "cpio.py", "debs.py")),
    *sorted((HERE / "guest").glob("*.txt")),
]
INIT = HERE / "guest/init"
SERVER = HERE / "guest/server.py"


@dataclass(frozen=True, slots=True)
class Image:
    """What QEMU's ``-kernel`` and ``-initrd`` take."""

    kernel: Path
    initrd: Path
    release: str


@one_at_a_time()
def build(wheels: Sequence[Path] = ()) -> Image:
    """The guest with ``wheels`` installed, from the cache where possible."""
    base = _base()
    key = digest(sums([INIT, SERVER, *wheels]))
    initrd = base / f"initrd-{key}.cpio"
    if not initrd.exists():
        with fresh(initrd) as path:
            _write_initrd(base / "base.cpio", wheels, path)
        discard_old(base.glob("initrd-*.cpio"), keep=4)
    release = (base / "release").read_text()
    return Image(kernel=base / "vmlinuz", initrd=initrd, release=release)


@cache
def _base() -> Path:
    """The cached directory with the kernel and the base archive."""
    packages = [debs.kernel_package(), *rootfs.words("packages")]
    found = debs.locate(packages)
    requirements = guest_requirements()
    key = digest([repr(found), repr(requirements), *sums(BASE_SOURCES)])
    base = cache_dir() / "images" / key
    if not base.exists():
        debs.download(packages, found, cache_dir() / "debs")
        log.info("making the guest's base image")
        with fresh(base) as path:
            files = [cache_dir() / "debs" / deb.filename for deb in found]
            _make_base(files, requirements, path)
        discard_old(base.parent.glob("*"), keep=3)
    os.utime(base)  # in use: the last to be discarded
    return base


def guest_requirements() -> list[str]:
    """What our guest distributions need from PyPI."""
    found: list[str] = []
    for name in ("shared", "guest"):
        project = tomllib.loads((CHECKOUT / name / "pyproject.toml").read_text())
        found += project["project"].get("dependencies", [])
    return [line for line in found if not line.startswith("vhostpci")]


def _make_base(files: Iterable[Path], requirements: list[str], base: Path) -> None:
    root = base / "root"
    root.mkdir(parents=True)
    release = rootfs.make(root, files, requirements)
    _unpack_kernel(root / f"boot/vmlinuz-{release}", base / "vmlinuz")
    shutil.rmtree(root / "boot")
    (base / "release").write_text(release)
    with (base / "base.cpio").open("wb") as file:
        archive = CpioWriter(file)
        archive.tree(root)
        archive.device("dev/console", 5, 1)
        archive.device("dev/null", 1, 3)
        archive.close()
    shutil.rmtree(root)


def _unpack_kernel(source: Path, target: Path) -> None:
    """Take the ELF kernel out of Debian's self-extracting one.

    QEMU starts either (this one by its PVH entry), but XZ under TCG takes two of
    the six seconds of a boot.
    """
    data = source.read_bytes()
    start = data.find(b"\xfd7zXZ\0")
    if start >= 0:
        data = lzma.LZMADecompressor().decompress(data[start:])
    target.write_bytes(data)


def _write_initrd(base: Path, wheels: Sequence[Path], target: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        _make_overlay(root, wheels)
        shutil.copyfile(base, target)
        with target.open("ab") as file:
            archive = CpioWriter(file)
            archive.tree(root)
            archive.close()


def _make_overlay(root: Path, wheels: Sequence[Path]) -> None:
    tools = root / "usr/lib/vhostpci-test"
    tools.mkdir(parents=True)
    shutil.copy(INIT, root / "init")
    (root / "init").chmod(0o755)
    shutil.copy(SERVER, tools)
    if wheels:
        _install_wheels(root, wheels)
    rootfs.compile_python(root, root, legacy=False)


def _install_wheels(root: Path, wheels: Sequence[Path]) -> None:
    site, programs = root / rootfs.SITE_PACKAGES, root / "usr/local/bin"
    rootfs.pip_install(site, "--no-deps", *map(str, wheels))
    (site / "bin").rename(programs)


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    image = build()
    print(f"-kernel {image.kernel} -initrd {image.initrd}")
