# SPDX-License-Identifier: Apache-2.0
"""Our Debian packages as `make debs` builds them, from the cache if there."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.vm.cache import digest, entry, one_at_a_time
from tests.vm.image import CHECKOUT

SOURCES = ("shared", "host", "guest", "kmod", "debian", "tools")

NEWER = "9.0"
"""The version of packages that are an upgrade of ours."""

ADDED = "# A newer version says more here.\n"
"""What each configuration file of such a package ends with."""

LOST = 2
"""Pings that an upgrade may cost: what the killed agent had taken and not passed on."""


@one_at_a_time("packages.lock")
def built() -> Path:
    """The directory with the packages of this checkout, and what lintian said."""

    def make(directory: Path, _: Path) -> None:
        done = subprocess.run(
            [str(CHECKOUT / "tools/debs"), str(directory)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            env=os.environ | {"VHOSTPCI_PIP": str(Path(sys.executable).parent / "pip")},
        )
        assert done.returncode == 0, done.stdout
        (directory / "log").write_text(done.stdout)

    return entry("packages", contents(SOURCES), make, keep=3)


def contents(names: Iterable[str]) -> list[str]:
    """Keys for the files of the checkout that have these names, or are below them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard", *names],
        cwd=CHECKOUT,
        check=True,
        stdout=subprocess.PIPE,
        timeout=60,
    ).stdout.split(b"\0")
    files = [CHECKOUT / os.fsdecode(name) for name in listed if name]
    return [
        digest([str(file.relative_to(CHECKOUT)), file.read_bytes().hex()])
        for file in files
        if file.is_file()
    ]


def package(name: str) -> Path:
    """The file of one of our packages."""
    (found,) = built().glob(f"{name}_*.deb")
    return found


def upgraded(name: str, directory: Path) -> Path:
    """Make the same package with a newer version, in a directory; return its file."""
    tree = directory / name
    subprocess.run(["dpkg-deb", "-R", str(package(name)), str(tree)], check=True)
    control = tree / "DEBIAN/control"
    # Its own version, and that of the others of ours that it depends on.
    old = re.search(r"^Version: (.*)", control.read_text(), re.MULTILINE)
    assert old
    control.write_text(control.read_text().replace(old[1], NEWER))
    listed = tree / "DEBIAN/conffiles"
    for path in listed.read_text().split() if listed.exists() else []:
        with (tree / path.lstrip("/")).open("a") as file:
            file.write(ADDED)
    subprocess.run(["dpkg-deb", "-b", str(tree), str(directory)], check=True)
    (found,) = directory.glob(f"{name}_{NEWER}_*.deb")
    return found
