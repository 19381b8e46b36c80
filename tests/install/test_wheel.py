# SPDX-License-Identifier: Apache-2.0
"""The wheels with C in them, which a machine without a compiler takes."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.vm import wheels
from tests.vm.image import CHECKOUT

pytestmark = pytest.mark.timeout(300)


def build(project: str, left: str, directory: Path) -> tuple[str, list[str]]:
    """Build a wheel; return its name, and the C modules in it.

    Args:
        project: the folder of the distribution.
        left: a module of another version of Python's, left in the sources.
        directory: where to build.
    """
    copy = directory / project
    shutil.copytree(CHECKOUT / project, copy, ignore=wheels.NOT_SOURCE)
    (copy / "src" / left).touch()
    wheels.pip_wheel(copy, directory / "wheels")
    (wheel,) = (directory / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        return wheel.name, [name for name in archive.namelist() if ".so" in name]


@pytest.mark.parametrize(
    ("project", "names"),
    [
        ("guest", ["vhostpci_guest/_ring"]),
        ("shared", ["vhostpci_shared/_memory", "vhostpci_shared/_relay"]),
    ],
)
def test_wheel_is_for_each_python_that_its_c_is_for(
    tmp_path: Path, project: str, names: list[str]
) -> None:
    left = f"{names[0]}.cpython-310-x86_64-linux-gnu.so"
    name, modules = build(project, left, tmp_path)
    assert name.endswith("-cp311-abi3-linux_x86_64.whl")
    assert sorted(modules) == [f"{name}.abi3.so" for name in names]


def test_sdist_of_the_agent_has_the_guards_that_a_link_names(tmp_path: Path) -> None:
    """guest/ring/guard.c is a link out of the folder that an sdist is made of."""
    for project in ("shared", "guest"):
        shutil.copytree(
            CHECKOUT / project,
            tmp_path / project,
            ignore=wheels.NOT_SOURCE,
            symlinks=True,
        )
    assert (tmp_path / "guest/ring/guard.c").is_symlink()
    make = [sys.executable, "setup.py", "-q", "sdist", "--formats=tar"]
    subprocess.run(make, cwd=tmp_path / "guest", check=True, timeout=60)
    (sdist,) = (tmp_path / "guest/dist").iterdir()
    with tarfile.open(sdist) as archive:
        for name in ("guard.c", "guard_api.h"):
            member = archive.getmember(f"{sdist.stem}/ring/{name}")
            found = archive.extractfile(member)
            assert member.isreg()
            assert found
            assert found.read() == (CHECKOUT / "shared/memory" / name).read_bytes()


def test_shared_part_is_installed_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon then relays kicks and survives a SIGBUS in Python."""
    monkeypatch.setenv("CC", "/bin/false")
    left = "vhostpci_shared/_relay.cpython-310-x86_64-linux-gnu.so"
    _, modules = build("shared", left, tmp_path)
    assert modules == []
