# SPDX-License-Identifier: Apache-2.0
"""What `make wheels` does with what other programs have built."""

import io
import tarfile
from pathlib import Path

import pytest

from tools import wheels


def sdist(place: Path, names: list[str], mtime: int, mode: int, user: str) -> Path:
    """Write an sdist as setuptools would, on some machine."""
    place.mkdir()
    path = place / "some-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(f"some-1.0/{name}")
            member.size, member.mtime, member.mode = 4, mtime, mode
            member.uname, member.uid = user, mtime % 1000
            archive.addfile(member, io.BytesIO(b"text"))
    return path


def test_sdists_of_two_machines_become_the_same(tmp_path: Path) -> None:
    found = []
    for name, order, mtime, mode in (
        ("a", ["x", "y"], 1, 0o644),
        ("b", ["y", "x"], 1_800_000_000, 0o600),
    ):
        out = tmp_path / f"{name}-out"
        out.mkdir()
        path = sdist(tmp_path / name, order, mtime, mode, name)
        found.append(wheels.repack(path, out, 1_700_000_000).read_bytes())
    assert found[0] == found[1]


def test_programs_stay_programs_in_an_sdist(tmp_path: Path) -> None:
    path = wheels.repack(sdist(tmp_path / "a", ["x"], 1, 0o700, "a"), tmp_path, 5)
    with tarfile.open(path) as archive:
        (member,) = archive.getmembers()
        assert (member.mode, member.mtime, member.uid) == (0o755, 5, 0)
        assert archive.extractfile(member).read() == b"text"  # type: ignore[union-attr]


def test_builds_that_differ_are_refused(tmp_path: Path) -> None:
    one, other, third = tmp_path / "1/a", tmp_path / "2/a", tmp_path / "2/b"
    for path, text in ((one, "1"), (other, "1"), (third, "1")):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    wheels.compare([one], [other])
    with pytest.raises(wheels.BuildError, match="one build made a, another b"):
        wheels.compare([one], [third])
    other.write_text("2")
    with pytest.raises(wheels.BuildError, match="a differs between two builds"):
        wheels.compare([one], [other])


def test_time_of_the_files_is_needed_outside_of_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wheels, "ROOT", tmp_path)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert wheels.main(["--dist", str(tmp_path)]) == 1
    assert "set SOURCE_DATE_EPOCH" in capsys.readouterr().err
