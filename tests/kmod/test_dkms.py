# SPDX-License-Identifier: Apache-2.0
"""The module as Debian's DKMS installs it, by the commands of kmod/README.md.

In a copy of this machine that has the headers of a kernel which it does not run.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kmod.machine import Machine
from tests.vm import headers
from tests.vm.kernels import THIS_DEBIAN
from tests.vm.kmod import SOURCE

pytestmark = [pytest.mark.kmod, pytest.mark.timeout(300)]

CHECKOUT = SOURCE.parent
MODULE = "uio_vhostpci/0.1.0"


@pytest.fixture
def release() -> str:
    """The kernel that the copy has headers of."""
    return THIS_DEBIAN.release()


@pytest.fixture
def machine(release: str, tmp_path: Path) -> Iterator[Machine]:
    """A machine with DKMS, and with headers where Debian's packages put them."""
    build = headers.build_directory(THIS_DEBIAN)
    with Machine(tmp_path) as machine:
        machine.run(f"mkdir -p /lib/modules/{release}")
        machine.run(f"ln -s {build} /lib/modules/{release}/build")
        # A kernel's image has one, and without it DKMS of Debian 13 runs no depmod.
        machine.run(f"touch /lib/modules/{release}/modules.dep")
        yield machine


@pytest.fixture
def installed(machine: Machine, release: str) -> Machine:
    """The machine after the README's commands for DKMS."""
    for command in readme_commands():
        if command == f"dkms install {MODULE}":
            machine.run(f"{command} -k {release}", cwd=CHECKOUT)
        elif command.startswith("dkms"):
            machine.run(command, cwd=CHECKOUT)
    return machine


def readme_commands() -> list[str]:
    """Return the README's commands that install the module."""
    text = (SOURCE / "README.md").read_text()
    section = text.partition("## Install")[2]
    found = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert found, "no commands under a heading Install"
    return [line.partition("#")[0].strip() for line in found[1].splitlines()]


def modinfo(machine: Machine, release: str, field: str) -> str:
    """Return the module's file that modprobe would load."""
    return machine.run(f"modinfo -k {release} -F {field} uio_vhostpci").strip()


def test_the_readme_installs_it_by_five_commands() -> None:
    assert len(readme_commands()) == 5


def test_the_readmes_commands_install_it_for_the_kernel_that_has_headers(
    installed: Machine, release: str
) -> None:
    assert modinfo(installed, release, "vermagic").startswith(f"{release} ")


def test_dkms_signs_it_with_the_key_that_secure_boot_is_to_be_told_of(
    installed: Machine, release: str
) -> None:
    installed.run("test -s /var/lib/dkms/mok.pub")
    assert modinfo(installed, release, "signer") == "DKMS module signing key"


def test_nothing_is_left_after_it_was_removed(installed: Machine) -> None:
    installed.run(f"dkms remove {MODULE} --all")
    assert installed.run("dkms status; find /lib/modules -name 'uio_*'") == ""


def test_a_kernel_without_headers_is_told_their_package(machine: Machine) -> None:
    machine.run("dkms add ./kmod", cwd=CHECKOUT)
    done = machine.attempt(f"dkms install {MODULE} -k 9.9.9", cwd=CHECKOUT)
    assert done.returncode != 0
    assert "linux-headers-9.9.9" in done.stdout


def test_its_version_is_that_of_the_distributions() -> None:
    project = tomllib.loads((CHECKOUT / "guest/pyproject.toml").read_text())
    config = (SOURCE / "dkms.conf").read_text()
    assert f'PACKAGE_VERSION="{project["project"]["version"]}"' in config
    assert MODULE.endswith(project["project"]["version"])
