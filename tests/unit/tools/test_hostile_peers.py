# SPDX-License-Identifier: Apache-2.0
"""Each row of docs/hostile-peers.md has its tests, and each known error has a row."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PEERS = (ROOT / "docs" / "hostile-peers.md").read_text()
RINGS = (ROOT / "docs" / "hostile-rings.md").read_text()
ROWS = [line for line in PEERS.splitlines() if line.startswith("| ")][2:]
TEST = re.compile(r"`(tests/[\w./]+)::(\w+)`")
KNOWN = (
    *("CVE-2018-1059", "CVE-2019-14818", "CVE-2020-10722", "CVE-2020-10723"),
    *("CVE-2020-10724", "CVE-2020-10725", "CVE-2020-10726", "CVE-2020-14374"),
    *("CVE-2021-3839", "CVE-2022-0669", "CVE-2022-2132", "CVE-2024-11614"),
    *("285e6b8b18", "e31b57e732", "7023f3e532", "1846fe767f", "73ea44370d"),
    *("21d9fb6bad", "0b2a2ca350", "#212", "#343", "#227", "#161", "#180"),
    *("SPDK #3132", "VPP #776", "85805ee887", "CVE-2021-3748", "CVE-2022-26353"),
    *("26354", "RT-Thread #11326"),
)
"""The errors of other back-ends and devices that are known to us."""


@pytest.mark.parametrize("error", KNOWN)
def test_known_error_has_a_row(error: str) -> None:
    assert error in PEERS or error in RINGS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_tests_of_a_row_exist(row: str) -> None:
    """A row without a test says why it has none."""
    named = TEST.findall(row)
    assert named or re.search(r"\| none: .* \|$", row)
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        kinds = (ast.FunctionDef, ast.ClassDef)
        there = [node.name for node in tree.body if isinstance(node, kinds)]
        assert name in there, f"{file} has no {name}"
