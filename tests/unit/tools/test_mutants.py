# SPDX-License-Identifier: Apache-2.0
"""The list of `tools/mutants.py` fits the code, and its mistakes are named."""

from pathlib import Path

import pytest

from tools import mutants
from tools.mutants import Mutant, MutantError, Tree

ENTRY = """
[[mutant]]
name = "one"
file = "code.c"
old = "a < b"
new = "a <= b"
tests = ["tests/test_code.py"]
"""


def read(tmp_path: Path, text: str) -> list[Mutant]:
    data = tmp_path / "mutants.toml"
    data.write_text(text)
    return mutants.read_mutants(data)


@pytest.mark.parametrize(
    "mutant", mutants.read_mutants(mutants.DATA), ids=lambda mutant: mutant.name
)
def test_a_mutant_of_the_list_can_be_made_and_its_tests_exist(mutant: Mutant) -> None:
    """A change of the code that a mutant changes needs a change of the list too."""
    text = (mutants.ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1
    assert mutant.old != mutant.new
    assert mutant.tests
    for test in mutant.tests:
        assert (mutants.ROOT / test.partition("::")[0]).is_file()


def test_an_entry_is_read(tmp_path: Path) -> None:
    (mutant,) = read(tmp_path, ENTRY)
    assert (mutant.name, mutant.old, mutant.new) == ("one", "a < b", "a <= b")
    assert mutant.tests == ("tests/test_code.py",)
    assert mutant.in_c


def test_two_mutants_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MutantError, match="one: two mutants have this name"):
        read(tmp_path, ENTRY + ENTRY)


@pytest.mark.parametrize("key", ["name", "file", "old", "new", "tests"])
def test_an_entry_that_lacks_a_key_is_refused(tmp_path: Path, key: str) -> None:
    lines = [line for line in ENTRY.splitlines() if not line.startswith(key)]
    with pytest.raises(MutantError, match=key):
        read(tmp_path, "\n".join(lines))


def test_an_entry_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MutantError, match=r"one: .*'test'"):
        read(tmp_path, ENTRY + 'test = "tests/test_code.py"\n')


def tree_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> Tree:
    """Copy a tree whose only files are code.c and a test that always passes."""
    root = tmp_path / "root"
    (root / "tests").mkdir(parents=True)
    (root / "code.c").write_text(code)
    (root / "tests" / "test_code.py").write_text("def test() -> None:\n    pass\n")
    monkeypatch.setattr(mutants, "ROOT", root)
    (tmp_path / "copy").mkdir()
    return Tree(tmp_path / "copy")


def test_a_change_is_made_in_the_copy_and_undone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (mutant,) = read(tmp_path, ENTRY)
    tree = tree_with(monkeypatch, tmp_path, "return a < b;")
    with tree.mutated(mutant):
        assert (tree.root / "code.c").read_text() == "return a <= b;"
        assert (mutants.ROOT / "code.c").read_text() == "return a < b;"
    assert (tree.root / "code.c").read_text() == "return a < b;"


@pytest.mark.parametrize("code", ["a > b", "a < b || a < b"], ids=["none", "two"])
def test_a_change_that_is_not_in_one_place_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str
) -> None:
    (mutant,) = read(tmp_path, ENTRY)
    tree = tree_with(monkeypatch, tmp_path, code)
    with (
        pytest.raises(MutantError, match=r"one: code\.c has the old text"),
        tree.mutated(mutant),
    ):
        pass


@pytest.mark.parametrize(("test", "failing"), [("pass", False), ("assert False", True)])
def test_a_failing_test_is_told_from_a_passing_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, test: str, failing: bool
) -> None:
    tree = tree_with(monkeypatch, tmp_path, "")
    path = tree.root / "tests" / "test_code.py"
    path.write_text(f"def test() -> None:\n    {test}\n")
    assert tree.tests_fail(["tests/test_code.py"]) == failing


def test_tests_that_cannot_be_run_do_not_count_as_failing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tree = tree_with(monkeypatch, tmp_path, "")
    with pytest.raises(MutantError, match=r"cannot run tests/nothing\.py"):
        tree.tests_fail(["tests/nothing.py"])
