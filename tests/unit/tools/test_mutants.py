# SPDX-License-Identifier: Apache-2.0
"""The list of `tools/mutants.py` fits the code, and its mistakes are named."""

import ast
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from tools import mutants
from tools.mutants import Mutant, MutantError, Outcome, Tree

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


# Many mutants name one file.
parse = cache(ast.parse)


def has_test(path: Path, names: list[str]) -> bool:
    """Whether a file has the test of this name, or of these: class, then function."""
    if not path.is_file():
        return False
    scope: list[ast.stmt] = parse(path.read_text()).body
    for name in names:
        function, *_ = name.split("[")  # what follows are the values of its parameters
        found = [
            node
            for node in scope
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            and node.name == function
        ]
        if not found:
            return False
        scope = found[0].body if isinstance(found[0], ast.ClassDef) else []
    return True


def fault(mutant: Mutant) -> str:
    """Return what an entry of the list gets wrong; "" if it is right."""
    text = (mutants.ROOT / mutant.file).read_text()
    if (count := text.count(mutant.old)) != 1:
        return f"{mutant.file} has the text to change {count} times"
    if mutant.old == mutant.new or not mutant.tests:
        return "it changes nothing, or has no test"
    for test in mutant.tests:
        file, *names = test.split("::")
        if not has_test(mutants.ROOT / file, names):
            return f"there is no test {test}"
    return ""


def test_each_mutant_of_the_list_can_be_made_and_its_tests_exist() -> None:
    """A change of the code that a mutant changes needs a change of the list too."""
    # One test for hundreds of mutants, as what surrounds each test takes longer.
    found = {
        mutant.name: fault(mutant) for mutant in mutants.read_mutants(mutants.DATA)
    }
    assert not {name: why for name, why in found.items() if why}


def test_faults_of_an_entry_are_found(tmp_path: Path) -> None:
    (mutant,) = read(tmp_path, ENTRY)
    right = replace(mutant, file=__file__, old='return ""\n', tests=(__file__,))
    assert fault(right) == ""
    assert "has the text to change 0 times" in fault(replace(right, old="no" + "where"))
    assert "changes nothing" in fault(replace(right, new=right.old))
    assert "has no test" in fault(replace(right, tests=()))
    assert "there is no test" in fault(replace(right, tests=(f"{__file__}::test_z",)))


def test_a_test_is_found_by_its_file_its_class_and_its_name(tmp_path: Path) -> None:
    path = tmp_path / "test_code.py"
    path.write_text("def test_a(): ...\nclass TestB:\n    async def test_c(): ...\n")
    for names in ([], ["test_a"], ["TestB"], ["TestB", "test_c"], ["test_a[1-2]"]):
        assert has_test(path, names)
    for names in (["test_c"], ["TestB", "test_a"], ["test"], ["test_a", "test_a"]):
        assert not has_test(path, names)
    assert not has_test(tmp_path / "test_other.py", [])


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


@pytest.mark.parametrize(
    ("test", "outcome"),
    [
        ("pass", Outcome.SURVIVES),
        ("assert False", Outcome.KILLED),
        ("import signal; signal.pause()", Outcome.HANGS),
    ],
)
def test_tests_pass_or_fail_or_hang(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, test: str, outcome: Outcome
) -> None:
    tree = tree_with(monkeypatch, tmp_path, "")
    path = tree.root / "tests" / "test_code.py"
    path.write_text(f"def test() -> None:\n    {test}\n")
    limit_s = 1 if outcome is Outcome.HANGS else mutants.LIMIT_S
    assert tree.run_tests(["tests/test_code.py"], limit_s) is outcome


@pytest.mark.parametrize("outcome", Outcome)
def test_only_a_mutant_that_makes_a_test_fail_counts_as_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outcome: Outcome
) -> None:
    """Not one that makes it hang: on a slow machine the limit may pass without it."""
    (mutant,) = read(tmp_path, ENTRY)
    tree_with(monkeypatch, tmp_path, "return a < b;")

    def run_tests(tree: Tree, *_: object) -> Outcome:
        changed = "<=" in (tree.root / "code.c").read_text()
        return outcome if changed else Outcome.SURVIVES

    monkeypatch.setattr(Tree, "run_tests", run_tests)
    monkeypatch.setattr(Tree, "build_ring", lambda _: None)
    noticed = outcome is Outcome.KILLED
    assert mutants.check([mutant]) == ([] if noticed else [mutant])


def test_tests_that_cannot_be_run_do_not_count_as_failing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tree = tree_with(monkeypatch, tmp_path, "")
    with pytest.raises(MutantError, match=r"cannot run tests/nothing\.py"):
        tree.run_tests(["tests/nothing.py"], mutants.LIMIT_S)
