# SPDX-License-Identifier: Apache-2.0
"""Each error that a user reads has its own code, and docs/errors.md lists them."""

from dataclasses import replace
from pathlib import Path

import pytest

from tools import errors
from tools.error_texts import IN_WORDS
from tools.errors import Classes, File, Site

SOURCE = """\
class HostError(Coded):
    pass


class Given(HostError):
    def __init__(self, number):
        super().__init__(f"it is {number}")


def read(path, why):
    raise HostError(f"cannot read {path}")
    raise HostError(
        "several "
        "lines",
    )
    raise HostError(f"{path}: {why}", code=why.code)
    raise HostError(why.text, code=why.code or "NEW")
    raise Given(3)
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a checkout with one source."""
    monkeypatch.setattr(errors, "ROOT", tmp_path)
    monkeypatch.setattr(errors, "PAGE", tmp_path / "docs/errors.md")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/errors.md").write_text("# Errors\n")
    folder = tmp_path / "host/src/vhostpci_host"
    folder.mkdir(parents=True)
    (folder / "some.py").write_text(SOURCE)
    return tmp_path


def source(root: Path) -> Path:
    return root / "host/src/vhostpci_host/some.py"


def sites(root: Path) -> list[Site]:
    file = File(source(root), root)
    return [*file.sites(Classes([file]))]


def test_the_page_and_the_codes_are_up_to_date(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Where this fails, `python tools/errors.py --write` helps."""
    assert errors.main([]) == 0, capsys.readouterr().err


def test_each_code_is_in_one_place() -> None:
    codes = [site.code for site in errors.all_sites()]
    assert len(codes) == len(set(codes))


def test_words_for_a_code_are_of_one_that_there_is() -> None:
    assert {*IN_WORDS} <= {site.code for site in errors.all_sites()}


def test_error_that_has_no_code_is_a_mistake(root: Path) -> None:
    found = [*errors.mistakes(sites(root), "")]
    assert [one.partition(":")[2] for one in found] == [
        "11: this HostError has no code",
        "12: this HostError has no code",
        "17: this HostError has no code",
    ]


def test_each_place_gets_a_code_that_was_never_used(root: Path) -> None:
    page = "# Errors\n\n## Retired\n\n| H007 | an old one |\n"
    assert errors.give_codes(sites(root), page) == {source(root)}
    assert [site.code for site in sites(root)] == ["H008", "H009", "H010"]
    text = source(root).read_text()
    assert 'HostError(f"cannot read {path}", code="H008")' in text
    assert 'code=why.code or "H010"' in text
    assert "Given(3)" in text


def test_code_in_two_places_is_a_mistake(root: Path) -> None:
    (one, *_) = sites(root)
    twice = [replace(one, code="H001"), replace(one, code="H001", line=30)]
    assert len([*errors.mistakes(twice, "")]) == 2


def test_code_that_is_retired_is_not_used_again(root: Path) -> None:
    (one, *_) = sites(root)
    page = "# Errors\n\n## Retired\n\n| Code | Text |\n|---|---|\n| H001 | old |\n"
    (found,) = errors.mistakes([replace(one, code="H001")], page)
    assert "H001 was another error's" in found


def test_code_that_vanishes_is_kept_as_a_retired_one(root: Path) -> None:
    text = SOURCE.replace('cannot read {path}")', 'cannot read {path}", code="H001")')
    source(root).write_text(text)
    (one, *_) = sites(root)
    page = errors.page_of([one], "# Errors\n")
    assert "| H001 | cannot read {path} | status 1 |" in page
    after = errors.page_of([], page)
    assert "| H001 | cannot read {path} |" in after.partition("## Retired")[2]
    assert errors.page_of([], after) == after
