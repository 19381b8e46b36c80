# SPDX-License-Identifier: Apache-2.0
"""A kernel that watches itself: KASAN, lockdep, kmemleak and more.

Debian has no such kernel, but it has the source of its kernels.  That source is built
here with ``tests/kmod/debug.config``, and the result is kept in the cache.  To build it
by hand:

    python -m tests.vm.debug_kernel

With ``VHOSTPCI_KERNELS=debug`` (``tox -e kmod-debug``) it is the only kernel of the
tests that take theirs from :func:`under_test`.
"""

import logging
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.vm import debs
from tests.vm.cache import cache_dir, digest, discard_old, fresh, one_at_a_time, sums
from tests.vm.kernels import BACKPORTS, THIS_DEBIAN, Kernel

log = logging.getLogger(__name__)

CONFIG = Path(__file__).parents[1] / "kmod/debug.config"
PROGRAMS = ("bc", "bison", "flex", "gcc", "make", "xz")

# The part of the build tree that is needed to build modules: a tenth of it.
HEADERS = (
    *("Makefile", ".config", "Module.symvers", "include", "scripts"),
    *("arch/x86/Makefile", "arch/x86/include", "tools/objtool/objtool"),
)
# The build takes eight minutes with two processors.
BUILD_TIMEOUT = 2 * 3600.0


@dataclass(frozen=True, slots=True)
class DebugKernel(Kernel):
    """The kernel that is built here, so none of its packages is in an archive."""

    def release(self) -> str:
        """What ``uname -r`` says where it runs."""
        return (_built() / "release").read_text()

    def image_packages(self) -> list[str]:
        """Return no package: the kernel is built here."""
        return []

    def made_here(self) -> list[Path]:
        """Return the package that stands for Debian's package of an image."""
        return [_built() / "image.deb"]

    def build_directory(self) -> Path:
        """Its headers."""
        return _built() / "headers"

    def qemu_args(self) -> list[str]:
        """Return more memory: KASAN takes an eighth of it and of each window."""
        return ["-m", "1G"]


DEBUG = DebugKernel("debug")


def under_test() -> list[Kernel]:
    """Return the kernels that the module is tested with."""
    chosen = os.environ.get("VHOSTPCI_KERNELS", "")
    if chosen not in ("", "debug"):
        raise RuntimeError(f"VHOSTPCI_KERNELS={chosen}: it may be debug, or not be set")
    return [DEBUG] if chosen else [THIS_DEBIAN, BACKPORTS]


@cache
def _built() -> Path:
    """The cached directory with the kernel, its modules and its headers."""
    package = source_package()
    found = debs.locate([package])
    key = digest([repr(found), *sums([Path(__file__), CONFIG])])
    built = cache_dir() / "debug-kernel" / key
    with one_at_a_time("debug-kernel.lock"):  # only for this build
        if not built.exists():
            _check_programs()
            debs.download([package], found, cache_dir() / "debs")
            log.info("building %s with KASAN and lockdep (10 minutes)", package)
            with fresh(built) as path:
                path.mkdir()
                _build(cache_dir() / "debs" / found[0].filename, path)
            discard_old(built.parent.glob("*"), keep=2)
    return built


def source_package() -> str:
    """Return the package with the source of the guests' usual kernel."""
    major, minor, *_ = THIS_DEBIAN.release().split(".")
    return f"linux-source-{major}.{minor}"


def _check_programs() -> None:
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    if missing:
        raise RuntimeError(f"to build a kernel, install {', '.join(missing)}")


def _build(source: Path, built: Path) -> None:
    tree, root = built / "headers", built / "root"
    debs.unpack(source, built)
    (archive,) = built.glob("usr/src/linux-source-*.tar.xz")
    tree.mkdir()
    _run("tar", "-xf", str(archive), "--strip-components=1", cwd=tree)
    shutil.rmtree(built / "usr")
    _make(tree, f"KCONFIG_ALLCONFIG={CONFIG}", "allnoconfig")
    _check_config(tree / ".config")
    _make(tree, f"-j{os.cpu_count()}", "bzImage", "modules")
    _make(tree, f"INSTALL_MOD_PATH={root}", "INSTALL_MOD_STRIP=1", "modules_install")
    _pack(tree, root, built)
    _keep(tree, HEADERS)


def _check_config(made: Path) -> None:
    """Refuse a configuration without an option that we set; it may be renamed."""
    have = set(made.read_text().splitlines())
    lost = [
        line
        for line in CONFIG.read_text().splitlines()
        if line.startswith("CONFIG_") and line not in have
    ]
    if lost:
        raise RuntimeError(f"{CONFIG}: this kernel does not take {', '.join(lost)}")


def _pack(tree: Path, root: Path, built: Path) -> None:
    """Make a package of the image and its modules, like Debian's kernel packages."""
    release = (tree / "include/config/kernel.release").read_text().strip()
    for link in ("build", "source"):
        (root / "lib/modules" / release / link).unlink()
    (root / "boot").mkdir()
    shutil.copy(tree / "arch/x86/boot/bzImage", root / f"boot/vmlinuz-{release}")
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(CONTROL.format(release=release))
    _run("dpkg-deb", "-Znone", "--build", str(root), str(built / "image.deb"))
    shutil.rmtree(root)
    (built / "release").write_text(release)


CONTROL = """\
Package: linux-image-{release}
Version: 1
Architecture: amd64
Maintainer: vhostpci tests
Description: a kernel for tests
"""


def _keep(tree: Path, names: Iterable[str]) -> None:
    """Remove all files of a tree but these."""
    kept = tree.with_name("kept")
    for name in names:
        (kept / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).rename(kept / name)
    shutil.rmtree(tree)
    kept.rename(tree)


def _make(tree: Path, *words: str) -> None:
    _run("nice", "make", "-s", *words, cwd=tree)


def _run(*argv: str, cwd: Path | None = None) -> None:
    # tox sets compiler flags for our own C code, which do not suit a kernel.
    environment = {name: os.environ[name] for name in os.environ if name != "CFLAGS"}
    done = subprocess.run(
        argv,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_TIMEOUT,
    )
    if done.returncode:
        end = "\n".join(done.stdout.splitlines()[-30:])
        raise RuntimeError(f"{' '.join(argv)} failed:\n{end}")


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    print(DEBUG.release())
