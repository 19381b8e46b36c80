# SPDX-License-Identifier: Apache-2.0
"""The kernels of Debian that guests boot, and that the module is built for.

A new one is a line in ``supported.toml``, or here: its suite says which it is, whatever
its version by then.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from tests.vm import debs, suites
from tests.vm.architecture import AMD64, ARM64, Architecture
from tests.vm.debian import CODENAME

PARTS = r"linux-(base|binary|modules)-\d"
HEADERS_NEED = r"linux-headers-.*-common$|linux-kbuild-"


@dataclass(frozen=True, slots=True)
class Kernel:
    """What ``linux-image-amd64``, or another architecture's, stands for in a suite."""

    name: str
    suite: str = ""  # none: what this machine's APT has
    architecture: Architecture = AMD64

    def archive(self) -> debs.Archive:
        """Where its packages are."""
        if self.architecture is not AMD64:
            return suites.archive(self.suite, self.architecture)
        ours = self.suite in ("", CODENAME)
        return debs.MACHINE if ours else suites.archive(self.suite)

    def guest_archive(self) -> debs.Archive:
        """Where the packages of a guest are that boots it, but for its own."""
        if self.architecture is not AMD64:
            return suites.archive(CODENAME, self.architecture)
        return debs.MACHINE

    def has_our_compiler(self) -> bool:
        """Whether this machine's compiler, or its Debian's, has built it."""
        return self.suite in ("", CODENAME, f"{CODENAME}-backports")

    def package(self) -> str:
        """The package of its image."""
        newest = f"linux-image-{self.architecture.name}"
        (found,) = debs.depends(newest, r"linux-image-\d", self.archive())
        return found

    def release(self) -> str:
        """What ``uname -r`` says where it runs."""
        return self.package().removeprefix("linux-image-")

    def image_packages(self) -> list[str]:
        """The packages of its image."""
        # Up to 6.x one package has it all.  From 7.x on that one is empty, and others
        # have the kernel, its modules and what depmod reads beside them.
        name = self.package()
        return [name, *debs.relations(name, PARTS, self.archive())]

    def made_here(self) -> list[Path]:
        """Package files that are in no archive."""
        return []

    def build_directory(self) -> Path | None:
        """Its headers, where they are in no package."""
        return None

    def qemu_args(self) -> list[str]:
        """What a VM needs for it that others do not."""
        return []

    def header_packages(self) -> list[str]:
        """The packages that a module for it is built with, but for the compiler."""
        name = f"linux-headers-{self.release()}"
        needs = debs.depends(name, HEADERS_NEED, self.archive())
        return [name, *needs]


TABLE = tomllib.loads(Path(__file__).with_name("supported.toml").read_text())
SUPPORTED_KERNELS = {
    version: Kernel(version, row["suite"]) for version, row in TABLE["kernel"].items()
}
"""By their versions, the oldest first."""


def is_of(line: str, version: str) -> bool:
    """Whether a version such as 6.1.0-56-amd64 is of a line such as 6.1."""
    return f"{version}.".startswith(f"{line}.")


THIS_DEBIAN = Kernel("this-debian")
BACKPORTS = Kernel("backports", f"{CODENAME}-backports")
NEWEST = [*SUPPORTED_KERNELS.values()][-1]
OF_ARM64 = [
    Kernel(f"{suite}-{ARM64.name}", suite, ARM64) for suite in ("bookworm", "trixie")
]
