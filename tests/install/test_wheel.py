# SPDX-License-Identifier: Apache-2.0
"""What `make wheels` publishes, and what the set-up of each distribution makes.

The programs that build are those of pyproject.toml's group "wheels".
"""

import json
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.vm import wheels as vm_wheels
from tests.vm.image import CHECKOUT
from tools import wheels
from tools.wheels import MODULES, NOT_SOURCE

pytestmark = pytest.mark.timeout(600)

EPOCH = 1_700_000_000


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which `make wheels` has put what it builds."""
    for name in ("build", "auditwheel", "abi3audit", "twine"):
        pytest.importorskip(name)
    found = tmp_path_factory.mktemp("wheels") / "dist"
    wheels.build(found, str(EPOCH))
    return found


def wheel_of(project: str, dist: Path) -> Path:
    """Return the wheel of a distribution."""
    (found,) = dist.glob(f"vhostpci_{project}-*.whl")
    return found


def test_everything_is_published_once(dist: Path) -> None:
    kinds = sorted(re.sub(r"-[\d.]+\d", "", path.name) for path in dist.iterdir())
    (system,) = {name.split("-abi3-")[1] for name in kinds if "-abi3-" in name}
    assert kinds == [
        f"vhostpci_guest-cp311-abi3-{system}",
        "vhostpci_guest.tar.gz",
        "vhostpci_host-py3-none-any.whl",
        "vhostpci_host.tar.gz",
        f"vhostpci_shared-cp311-abi3-{system}",
        "vhostpci_shared.tar.gz",
    ]


def test_wheels_are_for_systems_that_are_as_old_as_this_one(dist: Path) -> None:
    """Debian 12 has glibc 2.36, and nothing of ours needs more than 2.34 there."""
    found = re.search(r"-manylinux_2_(\d+)_", wheel_of("guest", dist).name)
    own = platform.libc_ver()[1].split(".")[1]
    assert found
    assert int(found[1]) <= int(own)
    if own == "36":
        assert found[1] == "34"


@pytest.mark.parametrize("project", MODULES)
def test_wheel_has_its_modules_types_and_licence(project: str, dist: Path) -> None:
    wheel = wheel_of(project, dist)
    info = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        licence = archive.read(f"{info}/licenses/LICENSE")
        metadata = archive.read(f"{info}/METADATA").decode()
    assert sorted(name for name in names if ".so" in name) == list(MODULES[project])
    assert f"vhostpci_{project}/py.typed" in names
    assert licence == (CHECKOUT / project / "LICENSE").read_bytes()
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nAuthor: The vhostpci developers\n" in metadata


def test_wheels_are_installed_without_a_compiler_or_a_network(
    tmp_path: Path, dist: Path
) -> None:
    """What they need from PyPI is in this environment; test_readme.py has the rest."""
    found = [str(wheel_of(project, dist)) for project in MODULES]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    environment = {"PATH": str(fake_compiler(tmp_path)), "PYTHONPATH": ""}
    subprocess.run(
        [*pip, "--target", str(tmp_path / "installed"), *found],
        env=environment,
        check=True,
        timeout=120,
    )
    modules = "vhostpci_shared._relay, vhostpci_shared._memory, vhostpci_guest._ring"
    done = subprocess.run(
        [sys.executable, "-c", f"import {modules} as ring; print(ring.__file__)"],
        env=environment | {"PYTHONPATH": str(tmp_path / "installed")},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.startswith(str(tmp_path / "installed"))


@pytest.mark.parametrize("project", MODULES)
def test_wheel_has_no_path_of_the_machine_that_built_it(
    project: str, dist: Path
) -> None:
    with zipfile.ZipFile(wheel_of(project, dist)) as archive:
        for name in archive.namelist():
            data = archive.read(name)
            assert b"/vhostpci-wheels-" not in data, name
            assert str(CHECKOUT).encode() not in data, name
            assert sys.prefix.encode() not in data, name


@pytest.mark.parametrize("project", MODULES)
def test_sdist_says_nothing_of_the_machine_that_built_it(
    project: str, dist: Path
) -> None:
    (sdist,) = dist.glob(f"vhostpci_{project}-*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert {member.mtime for member in members} == {EPOCH}
    assert {(member.uid, member.uname) for member in members} == {(0, "root")}
    assert {member.mode for member in members} == {0o644, 0o755}
    names = {member.name.partition("/")[2] for member in members}
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names


def test_sdist_of_the_agent_has_the_guards_that_a_link_names(dist: Path) -> None:
    """guest/ring/guard.c is a link out of the folder that an sdist is made of."""
    assert (CHECKOUT / "guest/ring/guard.c").is_symlink()
    (sdist,) = dist.glob("vhostpci_guest-*.tar.gz")
    folder = sdist.name.removesuffix(".tar.gz")
    with tarfile.open(sdist) as archive:
        for name in ("guard.c", "guard_api.h"):
            member = archive.getmember(f"{folder}/ring/{name}")
            found = archive.extractfile(member)
            assert member.isreg()
            assert found
            assert found.read() == (CHECKOUT / "shared/memory" / name).read_bytes()


def test_sbom_names_what_the_daemon_needs(tmp_path: Path) -> None:
    pytest.importorskip("uv")
    wheels.write_sboms(tmp_path)
    found = json.loads((tmp_path / "vhostpci-host.cdx.json").read_text())
    assert found["bomFormat"] == "CycloneDX"
    assert found["metadata"]["component"]["name"] == "vhostpci-host"
    names = {component["name"] for component in found["components"]}
    assert {"cffi", "qemu-qmp", "vhostpci-shared"} <= names
    assert not names & {"pytest", "rich", "ruff"}


def test_programs_that_build_are_the_versions_that_write_these_bytes() -> None:
    """A newer one may write other bytes; a release is built again and compared."""
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    for requirement in settings["dependency-groups"]["wheels"]:
        assert re.fullmatch(r"[a-z0-9]+==[\d.]+", requirement)


def build(project: str, left: str, directory: Path) -> tuple[str, list[str]]:
    """Build a wheel with pip alone; return its name, and the C modules in it.

    Args:
        project: the folder of the distribution.
        left: a module of another version of Python's, left in the sources.
        directory: where to build.
    """
    copy = directory / project
    shutil.copytree(CHECKOUT / project, copy, ignore=NOT_SOURCE)
    (copy / "src" / left).touch()
    vm_wheels.pip_wheel(copy, directory / "wheels")
    (wheel,) = (directory / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        return wheel.name, [name for name in archive.namelist() if ".so" in name]


def test_wheel_that_pip_makes_is_for_each_python_that_its_c_is_for(
    tmp_path: Path,
) -> None:
    left = "vhostpci_guest/_ring.cpython-310-x86_64-linux-gnu.so"
    name, modules = build("guest", left, tmp_path)
    assert name.endswith("-cp311-abi3-linux_x86_64.whl")
    assert modules == list(MODULES["guest"])


def test_shared_part_is_installed_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon then relays kicks and survives a SIGBUS in Python."""
    monkeypatch.setenv("CC", "/bin/false")
    left = "vhostpci_shared/_relay.cpython-310-x86_64-linux-gnu.so"
    _, modules = build("shared", left, tmp_path)
    assert modules == []


def test_wheels_without_c_are_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`shared` is also installed without a compiler; its wheel may not be so."""
    pytest.importorskip("build")
    monkeypatch.setattr(wheels, "MODULES", {"shared": MODULES["shared"]})
    monkeypatch.setenv("PATH", f"{fake_compiler(tmp_path)}:/usr/bin:/bin")
    with pytest.raises(wheels.BuildError, match="no vhostpci_shared"):
        wheels.build(tmp_path / "dist", str(EPOCH))
    assert not (tmp_path / "dist").exists()


def fake_compiler(place: Path) -> Path:
    """Make a directory whose compiler compiles nothing."""
    folder = place / "bin"
    folder.mkdir()
    for name in ("cc", "gcc", "x86_64-linux-gnu-gcc"):
        (folder / name).symlink_to("/bin/false")
    return folder
