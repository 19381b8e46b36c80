# SPDX-License-Identifier: Apache-2.0
"""A guest that prints some lines of its kernel's log, and ends: it boots in seconds."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.vm import debs, qemu
from tests.vm.cache import cache_dir, entry, one_at_a_time, sums
from tests.vm.cpio import CpioWriter
from tests.vm.harness import DIE_WITH_US
from tests.vm.kernels import Kernel

INIT = """\
#!/busybox sh
/busybox mount -t proc proc /proc
/busybox dmesg
echo "the end"
/busybox poweroff -f
"""


@dataclass(frozen=True, slots=True)
class TinyGuest:
    """The files for QEMU's ``-kernel`` and ``-initrd``."""

    kernel: Path
    initrd: Path

    def log(self, words: str, *args: str, timeout: float = 180) -> str:
        """Return what the kernel has logged when it has booted with these words."""
        argv = [qemu.binary(), "-nodefaults", "-no-user-config", "-display", "none"]
        argv += [*qemu.accelerator(), "-no-reboot", "-serial", "stdio"]
        argv += ["-kernel", str(self.kernel), "-initrd", str(self.initrd)]
        argv += ["-append", f"{qemu.APPEND} {words}", *args]
        done = subprocess.run(
            [*DIE_WITH_US, *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="backslashreplace",
            timeout=timeout,
        )
        if not re.search("^the end", done.stdout, re.MULTILINE):
            raise RuntimeError(f"{argv} did not boot:\n{done.stdout}{done.stderr}")
        return done.stdout


@one_at_a_time()
def build(kernel: Kernel) -> TinyGuest:
    """Return the guest, from the cache where possible."""
    parts = {
        debs.MACHINE: ["busybox-static"],
        # All packages of the kernel but its modules: half a minute to unpack.
        kernel.archive(): [
            name for name in kernel.image_packages() if "-modules-" not in name
        ],
    }
    found = {archive: debs.locate(names, archive) for archive, names in parts.items()}

    def make(path: Path, _: Path) -> None:
        with TemporaryDirectory() as name:
            root = Path(name)
            for archive, files in found.items():
                _unpack(archive, parts[archive], files, root)
            (image,) = root.rglob("vmlinuz*")
            shutil.copy(image, path / "vmlinuz")
            _write(path / "initrd", next(root.rglob("bin/busybox")))

    inputs = [repr(found), *sums([Path(__file__)])]
    home = entry("tiny-guests", inputs, make, keep=3)
    return TinyGuest(home / "vmlinuz", home / "initrd")


def _unpack(
    archive: debs.Archive, names: Sequence[str], files: Sequence[debs.Deb], root: Path
) -> None:
    directory = cache_dir() / "debs"
    debs.download(names, files, directory, archive)
    for deb in files:
        debs.unpack(directory / deb.filename, root)


def _write(target: Path, busybox: Path) -> None:
    with TemporaryDirectory() as name, target.open("wb") as file:
        root = Path(name)
        shutil.copy(busybox, root / "busybox")
        (root / "init").write_text(INIT)
        (root / "init").chmod(0o755)
        archive = CpioWriter(file)
        archive.tree(root)
        archive.device("dev/console", 5, 1)
        archive.close()
