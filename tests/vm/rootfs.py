# SPDX-License-Identifier: Apache-2.0
"""Make the guest's root file system from Debian packages and PyPI's.

Hermetic: the packages are unpacked, not installed, and their scripts do not run.
What goes in is listed in ``guest/*.txt``.
"""

import errno
import lzma
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.vm import debs
from tests.vm.debian import CODENAME, PYTHON

LISTS = Path(__file__).parent / "guest"
SITE_PACKAGES = Path(f"usr/local/lib/{PYTHON.name}/dist-packages")


def words(name: str) -> list[str]:
    """The words of a list beside ``guest/init``, without its comments."""
    lines = (LISTS / f"{name}.txt").read_text().splitlines()
    return [word for line in lines for word in line.partition("#")[0].split()]


def packages() -> list[str]:
    """The Debian packages of the guest, but for its kernel."""
    return [*words("packages"), *words(f"packages-{CODENAME}")]


def make(root: Path, files: Iterable[Path], requirements: Sequence[str]) -> str:
    """Make the file system below ``root``; returns the kernel's release."""
    _make_skeleton(root)
    for file in files:
        debs.unpack(file, root)
    release = next((root / "lib/modules").iterdir()).name
    _prune(root)
    _link_busybox(root)
    _keep_modules(root, release)
    _install_python(root, requirements)
    _check_libraries(root)
    _run("ldconfig", "-r", str(root))  # pyudev looks libudev up in its cache
    return release


def add_module(overlay: Path, modules: Path, extra: Path) -> None:
    """Put a module beside those of an image, and what depmod says of all of them."""
    release = modules.name
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "lib/modules" / release
        shutil.copytree(modules, tree)
        (tree / "updates").mkdir()
        shutil.copy(extra, tree / "updates")
        _run("depmod", "-b", name, release)
        shutil.rmtree(tree / "kernel")  # the image has them
        # Not lib/: an archive's directory would take the place of the base's link.
        shutil.copytree(tree, overlay / "usr/lib/modules" / release)


def pip_install(target: Path, *what: str) -> None:
    """Install wheels or requirements below ``target``, for the guest's Python."""
    # --target leaves this machine's own packages out of it; its warnings are
    # about this machine's set-up.
    _run(
        *(sys.executable, "-m", "pip", "--python", str(PYTHON), "install", "-qq"),
        *("--disable-pip-version-check", "--no-compile", "--no-warn-script-location"),
        *("--root-user-action=ignore", "--target", str(target), *what),
    )


def compile_python(directory: Path, root: Path, *, legacy: bool) -> None:
    """Byte-compile a tree of the guest; ``legacy`` puts x.pyc where x.py is.

    Python starts several times faster under TCG when it need not compile, nor look
    at the sources' times.
    """
    _run(
        *(str(PYTHON), "-m", "compileall", "-q", "-f", "-j0"),
        *(["-b"] if legacy else []),
        *("--invalidation-mode", "unchecked-hash"),
        *("-s", str(root), "-p", "/", str(directory)),
    )


def _make_skeleton(root: Path) -> None:
    """What is there before the packages."""
    for name in ("dev", "proc", "sys", "run", "tmp", "root", "etc"):
        (root / name).mkdir(parents=True)
    debs.merge_usr(root)
    (root / "usr/bin/python3").symlink_to(PYTHON.name)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")


def _prune(root: Path) -> None:
    for pattern in words("pruned"):
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def _link_busybox(root: Path) -> None:
    """All those tools that no package of ours has.

    /bin/sh is dash: busybox's own shell prefers its applets, its ping for one, to
    the programs in PATH.
    """
    for name in _busybox(root, "--list").split():
        if not (root / "usr/bin" / name).exists() | (root / "usr/sbin" / name).exists():
            (root / "usr/bin" / name).symlink_to("busybox")


def _busybox(root: Path, *argv: str) -> str:
    """Run the guest's busybox, or this machine's, if that one is foreign here."""
    try:
        return _run(str(root / "bin/busybox"), *argv)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
    # Both are of one release of Debian.
    return _run("busybox", *argv)


def _keep_modules(root: Path, release: str) -> None:
    """Remove all kernel modules but those of our list and their dependencies."""
    modules = root / "lib/modules" / release
    _run("depmod", "-b", str(root), release)
    needed = {
        path for name in words("modules") for path in _needed_by(root, release, name)
    }
    for path in [*modules.rglob("*.ko*")]:
        if path not in needed:
            path.unlink()
    _decompress_modules(modules)
    for path in sorted(modules.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    _run("depmod", "-b", str(root), release)


def _decompress_modules(modules: Path) -> None:
    """Debian compresses them from Linux 6.10 on, which costs time at each boot."""
    for path in [*modules.rglob("*.ko.xz")]:
        path.with_suffix("").write_bytes(lzma.decompress(path.read_bytes()))
        path.unlink()


def _needed_by(root: Path, release: str, name: str) -> list[Path]:
    """The files of a module and of all those it depends on."""
    listing = _run(
        *("modprobe", "-d", str(root), "-S", release, "-C", "/nowhere"),
        *("--show-depends", name),
    )
    return [Path(path) for path in re.findall(r"^insmod (\S+)", listing, re.MULTILINE)]


def _install_python(root: Path, requirements: Sequence[str]) -> None:
    """The dependencies of our wheels, and everything as byte code only."""
    site = root / SITE_PACKAGES
    site.mkdir(parents=True)
    if requirements:
        pip_install(site, *requirements)
    for path in [*site.rglob("tests"), *site.rglob("test"), site / "bin"]:
        shutil.rmtree(path, ignore_errors=True)
    for directory in (root / "usr/lib" / PYTHON.name, site):
        compile_python(directory, root, legacy=True)
        for path in [*directory.rglob("*.py")]:
            path.unlink()


def _check_libraries(root: Path) -> None:
    """Refuse a root in which a program lacks a library it is linked with."""
    present = {path.name for path in root.rglob("*.so*")}
    files = [path for path in root.rglob("*") if _is_elf(path)]
    report = _run("readelf", "-d", *map(str, files))
    for part in report.split("File: ")[1:]:
        missing = set(re.findall(r"\(NEEDED\).*\[(\S+)\]", part)) - present
        if missing:
            name = Path(part.partition("\n")[0]).relative_to(root)
            raise RuntimeError(f"guest/packages.txt: {name} lacks {sorted(missing)}")


def _is_elf(path: Path) -> bool:
    if path.is_symlink() or not path.is_file() or path.suffix in (".ko", ".a", ".o"):
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _run(*argv: str) -> str:
    done = subprocess.run(
        argv, check=True, stdout=subprocess.PIPE, text=True, timeout=600
    )
    return done.stdout
