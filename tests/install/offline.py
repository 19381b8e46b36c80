# SPDX-License-Identifier: Apache-2.0
"""The folder that guest/README.md has a user carry to a slave without a compiler."""

import shutil
from pathlib import Path

from tests.install import fresh, packages, readme
from tests.install.fresh import SOURCES
from tests.vm.cache import entry, one_at_a_time

BUILT_OF = ("shared", "host", "guest", "tools", *fresh.BUILD_FILES)


@one_at_a_time("offline.lock")
def build(place: Path) -> Path:
    """Build it by the README's commands on a Debian 12; from the cache if it is there.

    Args:
        place: an empty directory to work in.
    """

    def make(directory: Path, _: Path) -> None:
        with fresh.machine(fresh.RELEASES[12], place) as builder:
            for line in readme.commands("guest/README.md", "Build them, as root"):
                # There is no git in that machine, to ask for the last commit's time.
                builder.run(f"export SOURCE_DATE_EPOCH=1700000000; {line}")
            shutil.copytree(
                builder.path(SOURCES / "dist/offline"), directory / "offline"
            )

    return entry("offline", packages.contents(BUILT_OF), make, keep=2) / "offline"
