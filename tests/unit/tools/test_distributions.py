# SPDX-License-Identifier: Apache-2.0
"""What an index shows of our three distributions, and that they have one version."""

import re
import tomllib
from pathlib import Path

import pytest

from tools import version

ROOT = Path(__file__).resolve().parents[3]
PROJECTS = ("shared", "host", "guest")


def test_version_is_the_same_everywhere() -> None:
    assert len({name for _, name in version.found()}) == 1


def test_each_place_gets_a_version_that_is_written(tmp_path: Path) -> None:
    for place in version.PLACES:
        copy = tmp_path / place.file
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((ROOT / place.file).read_text())
    version.write("2.0.1rc3", tmp_path)
    assert {name for _, name in version.found(tmp_path)} == {"2.0.1rc3"}
    for place in version.PLACES:
        (current,) = {name for _, name in version.found()}
        text = (tmp_path / place.file).read_text()
        assert (current in text) == (place.file == version.HISTORY), place.file


def test_debians_changelog_gets_an_entry_once(tmp_path: Path) -> None:
    for place in version.PLACES:
        copy = tmp_path / place.file
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((ROOT / place.file).read_text())
    before = (ROOT / version.HISTORY).read_text()
    for _ in range(2):
        version.write("2.0.1", tmp_path)
    added = (tmp_path / version.HISTORY).read_text().removesuffix(f"\n{before}")
    assert re.fullmatch(
        r"vhostpci \(2\.0\.1\) unstable; urgency=medium\n\n  \* .*\n\n"
        r" -- vhostpci maintainers <\S+>  \w{3}, \d\d \w{3} \d{4} [\d:]{8} \+0000\n",
        added,
    )


def test_place_without_a_version_is_named(tmp_path: Path) -> None:
    first = tmp_path / version.PLACES[0].file
    first.parent.mkdir(parents=True)
    first.write_text("[project]\n")
    with pytest.raises(ValueError, match=version.PLACES[0].file):
        list(version.found(tmp_path))


def test_lock_file_names_the_public_index_alone() -> None:
    """Another index is one of the machine that wrote the file."""
    text = (ROOT / "uv.lock").read_text()
    assert set(re.findall(r'registry = "([^"]*)"', text)) == {"https://pypi.org/simple"}
    hosts = set(re.findall(r"[a-z]+://([^/\"]+)", text))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}


@pytest.mark.parametrize("project", PROJECTS)
def test_readme_has_no_link_that_an_index_cannot_follow(project: str) -> None:
    text = (ROOT / project / "README.md").read_text()
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert [link for link in links if not link.startswith("https://")] == []


@pytest.mark.parametrize("project", PROJECTS)
def test_licence_goes_with_each_distribution(project: str) -> None:
    settings = tomllib.loads((ROOT / project / "pyproject.toml").read_text())
    assert settings["project"]["license"] == "Apache-2.0"
    assert settings["project"]["license-files"] == ["LICENSE"]
    licence = (ROOT / project / "LICENSE").read_bytes()
    assert licence == (ROOT / "LICENSES" / "Apache-2.0.txt").read_bytes()
