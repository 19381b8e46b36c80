# SPDX-License-Identifier: Apache-2.0
"""The versions of QEMU that we support, each run from Debian's packages.

The packages, with all that they depend on, are unpacked into the cache and not
installed.  Beside them lies a script named like QEMU, which runs that QEMU by its own
dynamic linker, with its own libraries and firmware.

That is simpler than chroot(2): sockets, memory files and images have the same paths
inside and outside, nothing is mounted, root is not needed, the process that was started
is QEMU itself, and the script's path is a QEMU for whatever wants one (`--qemu PATH`).
"""

import logging
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.vm import debs, suites
from tests.vm.cache import cache_dir, entry, one_at_a_time, sums
from tests.vm.kernels import SUPPORTED_KERNELS, TABLE, Kernel, is_of

log = logging.getLogger(__name__)

PROGRAM = "qemu-system-x86_64"
PACKAGE = "qemu-system-x86"

# Firmware is looked up in the first of these that has it.  QEMU searches the
# machine's own directories last, so a file that is missing here may come from there.
FIRMWARE = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
LIBRARIES = "usr/lib/x86_64-linux-gnu"
NOT_NEEDED = ("usr/share/doc", "usr/share/locale", "usr/share/man")

# Not by usr/lib64: what bookworm has there is a link to the linker of this machine.
SCRIPT = """\
#!/bin/sh
# {package} of Debian's {suite}, by its own dynamic linker.
export QEMU_MODULE_DIR={root}/{libraries}/qemu
exec {root}/{libraries}/ld-linux-x86-64.so.2 --argv0 "$0" \\
    --library-path {root}/{libraries} {root}/usr/bin/{program} {firmware} "$@"
"""


@dataclass(frozen=True, slots=True)
class Qemu:
    """A supported version."""

    version: str
    """The beginning of its version, which is also its name."""
    suite: str
    """The suite of Debian that has it."""
    kernel: Kernel
    """What VMs boot in the tests that walk all versions."""

    def program(self) -> str:
        """The path of a script that runs it."""
        return str(_unpacked(self.suite) / PROGRAM)

    def is_version(self, version: str) -> bool:
        """Whether ``version``, such as 7.2.22, is of this line."""
        return is_of(self.version, version)


SUPPORTED = {
    version: Qemu(version, row["suite"], SUPPORTED_KERNELS[row["kernel"]])
    for version, row in TABLE["qemu"].items()
}
"""By their versions, the oldest first."""


@cache
@one_at_a_time()
def _unpacked(suite: str) -> Path:
    """The cached directory with a suite's QEMU."""
    archive = suites.archive(suite)
    found = debs.resolve([PACKAGE], archive)

    def unpack(path: Path, root: Path) -> None:
        directory = cache_dir() / "debs"
        debs.download([deb.package for deb in found], found, directory, archive)
        log.info("unpacking the QEMU of Debian's %s", suite)
        debs.merge_usr(path)
        for deb in found:
            debs.unpack(directory / deb.filename, path)
        for name in NOT_NEEDED:
            shutil.rmtree(path / name)
        _write_script(path / PROGRAM, suite, root)

    inputs = [repr(found), *sums([Path(__file__)])]
    return entry("qemus", inputs, unpack, keep=len(SUPPORTED))


def _write_script(script: Path, suite: str, root: Path) -> None:
    """Write the script that runs the QEMU which will lie in ``root``."""
    text = SCRIPT.format(
        package=PACKAGE,
        suite=suite,
        root=root,
        libraries=LIBRARIES,
        program=PROGRAM,
        firmware=" ".join(f"-L {root}/{name}" for name in FIRMWARE),
    )
    script.write_text(text)
    script.chmod(0o755)
