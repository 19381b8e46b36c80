# SPDX-License-Identifier: Apache-2.0
"""Our Debian packages, built and installed on a fresh Debian 13 as the documents say.

Debian 12's packages are those of test_packages.py.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install import fresh, packages, readme
from tests.install.fresh import SOURCES, FreshMachine
from tests.vm.image import CHECKOUT
from tools.version import debian
from vhostpci_shared import __version__

pytestmark = [pytest.mark.debs, pytest.mark.install]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[FreshMachine]:
    """A Debian 13 with a checkout."""
    codename = fresh.RELEASES[13]
    with fresh.machine(codename, tmp_path, packages.SOURCES) as found:
        # A file that a build has left is not taken.
        shutil.copy(CHECKOUT / ".gitignore", found.path(SOURCES))
        found.run("apt-get install --no-install-recommends git make")
        found.run("git init -q .")
        yield found


def test_lintian_likes_what_is_built_and_apt_installs_it(machine: FreshMachine) -> None:
    said = machine.run("make debs")
    assert "python3-vhostpci-shared_" in said
    for command in readme.commands("docs/services.md", "`make debs` builds packages"):
        machine.run(command)
    for name in ("vhostpci-host", "vhostpci-guest"):
        assert machine.run(f"{name} --version") == f"{name} {__version__}\n"
        # The version of a newer Debian's package is higher than that of an older one's.
        version = machine.run(f"dpkg-query -W -f '${{Version}}' {name}")
        assert version == f"{debian(__version__)}~deb13"
    assert machine.run("dkms status").startswith(f"uio_vhostpci/{__version__}")
