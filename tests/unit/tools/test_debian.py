# SPDX-License-Identifier: Apache-2.0
"""The folder debian/ agrees with what it packages."""

import re
import shutil
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from tools import version

ROOT = Path(__file__).parents[3]
DEBIAN = ROOT / "debian"
SETUP = (ROOT / "tools/setup").read_text()


def project(name: str) -> dict[str, str]:
    """Return the [project] table of one of the distributions."""
    text = (ROOT / name / "pyproject.toml").read_text()
    found: dict[str, str] = tomllib.loads(text)["project"]
    return found


@pytest.mark.parametrize("name", ["shared", "host", "guest"])
def test_version_of_the_packages_is_that_of_the_distributions(name: str) -> None:
    changelog = (DEBIAN / "changelog").read_text()
    assert re.match(rf"vhostpci \({re.escape(project(name)['version'])}\) ", changelog)


def test_release_candidate_is_older_than_its_release_for_dpkg() -> None:
    if shutil.which("dpkg") is None:
        pytest.skip("no dpkg")
    versions = ("0.1.9", "0.2.0a1", "0.2.0b2", "0.2.0rc1", "0.2.0rc2", "0.2.0", "0.2.1")
    assert [version.debian(one) for one in versions[3:6:2]] == ["0.2.0~~rc1", "0.2.0"]
    # As tools/debs builds them, also where a candidate is that of a later Debian.
    built = [f"{version.debian(one)}~deb{n}" for one in versions for n in (12, 13)]
    for older, newer in pairwise(built):
        words = ("dpkg", "--compare-versions", older, "lt", newer)
        assert subprocess.run(words, check=False, timeout=60).returncode == 0, words


def test_links_lead_to_files() -> None:
    links = [path for path in DEBIAN.iterdir() if path.is_symlink()]
    assert links
    assert all(link.is_file() for link in links)


def test_set_up_installs_what_the_build_depends_on() -> None:
    control = (DEBIAN / "control").read_text()
    field = re.search(r"^Build-Depends:((?:\n .*)+)", control, re.MULTILINE)
    assert field
    names = {word.strip(" ,").split()[0] for word in field[1].splitlines() if word}
    # The names of sequences are provided by packages, as debhelper-compat is.
    names = {
        name for name in names if not name.startswith(("dh-sequence", "debhelper-"))
    }
    listed = re.search(r"^DEBS=\((.*?)^\)", SETUP, re.MULTILINE | re.DOTALL)
    assert listed
    assert names <= set(listed[1].split())


@pytest.mark.parametrize("name", sorted(path.name for path in DEBIAN.glob("*.p*")))
def test_maintainer_script_is_correct_shell(name: str) -> None:
    if name.rpartition(".")[2] in ("postinst", "prerm", "postrm", "preinst"):
        subprocess.run(["sh", "-n", str(DEBIAN / name)], check=True, timeout=60)


def test_every_lintian_override_has_a_reason() -> None:
    for path in DEBIAN.glob("*lintian-overrides"):
        lines = path.read_text().splitlines()
        for before, line in zip(["", *lines], lines, strict=False):
            assert line.startswith("#") or before.startswith("#"), f"{path}: {line}"
