# SPDX-License-Identifier: Apache-2.0
"""Each row of docs/hostile-rings.md has its tests, with both formats of the rings."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
DATAPLANE = ROOT / "tests" / "unit" / "guest" / "dataplane"
ROWS = [
    line
    for line in (ROOT / "docs" / "hostile-rings.md").read_text().splitlines()
    if "::" in line
]
TEST = re.compile(r"`([\w./]+)::(\w+)`(?: \((\w+)\))?")
FORMATS = {"split", "packed"}


def find(file: str, name: str) -> ast.FunctionDef:
    """Return a test that a row names.

    Raises:
        AssertionError: there is none.
    """
    path = ROOT / file if "/" in file else DATAPLANE / file
    assert path.is_file(), file
    found = [
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    assert found, f"{file} has no {name}"
    return found[0]


def formats(file: str, test: ast.FunctionDef) -> set[str] | None:
    """Return the formats that a test of the data plane runs with; None: not known.

    conftest.py runs one that takes `start` with both, unless a mark names one.
    """
    marks = " ".join(map(ast.unparse, test.decorator_list))
    for kind in FORMATS:
        whole_file = f"pytestmark = pytest.mark.{kind}_ring"
        if f"{kind}_ring" in marks or whole_file in (DATAPLANE / file).read_text():
            return {kind}
    own = "start" in marks
    takes_start = "start" in [one.arg for one in test.args.args]
    return FORMATS if takes_start and not own else None


def test_the_table_has_rows() -> None:
    assert len(ROWS) > 15


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_tests_of_a_row_exist_and_have_both_formats(row: str) -> None:
    """A row without a format says that this format "has none" of what it is about."""
    covered: set[str] = set()
    for file, name, word in TEST.findall(row):
        test = find(file, name)
        if word in FORMATS:
            covered |= {word}
            assert formats(file, test) in (None, {word}), f"{name} is not for {word}"
        else:
            covered |= FORMATS
            if "/" not in file and word != "any":
                assert formats(file, test) == FORMATS, f"{name} is not for both"
    missing = FORMATS - covered
    assert not missing or f"{missing.pop()} rings have none" in row
