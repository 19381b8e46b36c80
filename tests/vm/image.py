# SPDX-License-Identifier: Apache-2.0
"""A stock-Debian guest: the kernel's package, and an initramfs from packages.

Nothing is installed on this machine and no boot loader is involved: QEMU gets the
kernel and one file of two cpio archives.

    base      Debian's files, the guest's Python dependencies; half a minute to make
    overlay   our init, command server, wheels and module; a second to make

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

from tests.vm import debs, kmod, rootfs
from tests.vm.addons import Addon
from tests.vm.architecture import AMD64, Architecture
from tests.vm.cache import cache_dir, digest, discard_old, fresh, one_at_a_time, sums
from tests.vm.cpio import CpioWriter
from tests.vm.kernels import THIS_DEBIAN, Kernel

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
    """The files for QEMU's ``-kernel`` and ``-initrd``."""

    kernel: Path
    initrd: Path
    release: str
    architecture: Architecture = AMD64


def build(
    wheels: Sequence[Path] = (),
    kernel: Kernel = THIS_DEBIAN,
    *,
    module: bool = False,
    addons: Sequence[Addon] = (),
) -> Image:
    """The guest with ``wheels`` installed, from the cache where possible.

    Args:
        wheels: our distributions.
        kernel: what it boots.  Where it is of another architecture than this
            machine, the guest is a master: it has nothing of this project.
        module: whether modprobe finds uio_vhostpci; nothing loads it by itself.
        addons: more programs that it has.
    """
    trees = [addon.tree() for addon in addons]
    return _build(wheels, kernel, kmod.build(kernel) if module else None, trees)


@one_at_a_time()
def _build(
    wheels: Sequence[Path], kernel: Kernel, extra: Path | None, trees: Sequence[Path]
) -> Image:
    base = _base(kernel)
    release = (base / "release").read_text()
    files = [INIT, SERVER, *wheels, *([extra] if extra else [])]
    key = digest([*sums(files), *(tree.name for tree in trees)])
    initrd = base / f"initrd-{key}.cpio"
    if not initrd.exists():
        with fresh(initrd) as path, tempfile.TemporaryDirectory() as name:
            overlay = Path(name)
            for tree in trees:
                shutil.copytree(tree, overlay, symlinks=True, dirs_exist_ok=True)
            _make_overlay(overlay, wheels)
            if extra:
                rootfs.add_module(overlay, base / "modules" / release, extra)
            append(base / "base.cpio", overlay, path)
        discard_old(base.glob("initrd-*.cpio"), keep=6)
    os.utime(initrd)  # in use: the last to be discarded
    vmlinuz, architecture = base / "vmlinuz", kernel.architecture
    return Image(vmlinuz, initrd, release, architecture)


@cache
def _base(kernel: Kernel) -> Path:
    """The cached directory with the kernel, its modules and the base archive."""
    wanted = _packages(kernel)
    found = {archive: debs.locate(wanted[archive], archive) for archive in wanted}
    ours = kernel.architecture is AMD64
    requirements = guest_requirements() if ours else []
    all_found = [deb for part in found.values() for deb in part]
    made = kernel.made_here()
    seeds = [repr(all_found), repr(made), repr(requirements)]
    key = digest([*seeds, *sums(BASE_SOURCES)])
    base = cache_dir() / "images" / key
    if not base.exists():
        for archive, part in found.items():
            debs.download(wanted[archive], part, cache_dir() / "debs", archive)
        log.info("making the guest's base image, Linux %s", kernel.release())
        with fresh(base) as path:
            files = [cache_dir() / "debs" / deb.filename for deb in all_found]
            _make_base([*files, *made], requirements, path)
        discard_old(base.parent.glob("*"), keep=8)
    os.utime(base)  # in use: the last to be discarded
    return base


def _packages(kernel: Kernel) -> dict[debs.Archive, list[str]]:
    """Return the packages of the base, each with the archive that it comes from."""
    packages = {kernel.guest_archive(): rootfs.packages()}
    packages.setdefault(kernel.archive(), []).extend(kernel.image_packages())
    return packages


def guest_requirements() -> list[str]:
    """Return the requirements of our guest distributions that are on PyPI."""
    found: list[str] = []
    for name in ("shared", "guest"):
        project = tomllib.loads((CHECKOUT / name / "pyproject.toml").read_text())
        found += project["project"].get("dependencies", [])
    return [line for line in found if not line.startswith("vhostpci")]


def _make_base(files: Iterable[Path], requirements: list[str], base: Path) -> None:
    root = base / "root"
    root.mkdir(parents=True)
    release = rootfs.make(root, files, requirements)
    _take_kernel(root, release, base / "vmlinuz")
    shutil.copytree(root / "lib/modules", base / "modules")
    (base / "release").write_text(release)
    with (base / "base.cpio").open("wb") as file:
        archive = CpioWriter(file)
        archive.tree(root)
        archive.device("dev/console", 5, 1)
        archive.device("dev/null", 1, 3)
        archive.close()
    shutil.rmtree(root)


def _take_kernel(root: Path, release: str, target: Path) -> None:
    """Move the kernel out of a guest's root, where it would only take memory."""
    places = [root / f"boot/vmlinuz-{release}", root / f"lib/modules/{release}/vmlinuz"]
    # Debian's kernels are in /boot up to 6.x, beside their modules from 7.x on.
    found = [place for place in places if place.exists()]
    if not found:
        raise RuntimeError(f"no kernel: none of {', '.join(map(str, places))} is there")
    unpack_kernel(found[0], target)
    found[0].unlink()
    shutil.rmtree(root / "boot", ignore_errors=True)


def unpack_kernel(source: Path, target: Path) -> None:
    """Take the ELF kernel out of Debian's self-extracting one.

    QEMU starts either (this one by its PVH entry), but XZ under TCG takes two of
    the six seconds of a boot.
    """
    data = source.read_bytes()
    start = data.find(b"\xfd7zXZ\0")
    # Others than x86's have the bytes, too: in what unpacks an initrd.
    if start >= 0 and data[0x202:0x206] == b"HdrS":
        data = lzma.LZMADecompressor().decompress(data[start:])
    target.write_bytes(data)


def append(base: Path, overlay: Path, target: Path) -> None:
    """Write an archive, and after it all that is below a directory."""
    shutil.copyfile(base, target)
    with target.open("ab") as file:
        archive = CpioWriter(file)
        archive.tree(overlay)
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
