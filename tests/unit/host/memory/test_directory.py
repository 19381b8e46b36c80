# SPDX-License-Identifier: Apache-2.0
"""A directory that another user prepared is not used."""

import os
from pathlib import Path

import pytest

from vhostpci_host.errors import HostError
from vhostpci_host.memory.directory import check_directory, make_directory

OTHER = 1234
"""Neither root nor the user of the test."""


def test_missing_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    before = os.umask(0)
    make_directory(tmp_path / "a" / "b")
    os.umask(before)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o755


def test_directory_that_is_only_looked_at_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"cannot look at .*deep: No such file"):
        check_directory(tmp_path / "deep")
    assert not list(tmp_path.iterdir())


def test_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = tmp_path.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:
        os.chown(tmp_path, OTHER, -1)
    with pytest.raises(HostError, match=r"belongs to uid \d+, who could replace"):
        make_directory(tmp_path)


@pytest.mark.parametrize("owner", [0, OTHER])
def test_directory_of_root_or_of_the_daemons_user_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int
) -> None:
    if os.geteuid():
        pytest.skip("to give a directory to another user needs root")
    os.chown(tmp_path, owner, -1)
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    make_directory(tmp_path)


@pytest.mark.parametrize("mode", [0o777, 0o757])
def test_directory_that_everyone_may_write_is_refused(
    tmp_path: Path, mode: int
) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(HostError, match=f"has mode {mode:04o}.*chmod go-w"):
        make_directory(tmp_path)


def test_directory_that_another_group_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o775)
    make_directory(tmp_path)  # the group is our own
    if os.geteuid():
        pytest.skip("to give a directory to another group needs root")
    os.chown(tmp_path, -1, OTHER)
    with pytest.raises(HostError, match="has mode 0775"):
        make_directory(tmp_path)


def test_directory_with_the_sticky_bit_may_be_writable_for_everyone(
    tmp_path: Path,
) -> None:
    """As /dev/shm is."""
    tmp_path.chmod(0o1777)
    make_directory(tmp_path)


@pytest.mark.parametrize("below", [".", "deeper"])
def test_symbolic_link_of_another_user_is_not_followed(
    tmp_path: Path, below: str
) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.mkdir()
    link.symlink_to(target)
    make_directory(link / below)  # our own link is
    if os.geteuid():
        pytest.skip("to give a link to another user needs root")
    os.chown(link, OTHER, -1, follow_symlinks=False)
    with pytest.raises(HostError, match=f"link is a symbolic link of uid {OTHER}"):
        make_directory(link / below)
