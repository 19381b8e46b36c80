# SPDX-License-Identifier: Apache-2.0
"""pytest itself, as another process, with files whose tests do nothing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import longest_first

CHECKOUT = Path(longest_first.__file__).parents[1]
TWO_LABS = """
import pytest

@pytest.mark.parametrize("lab", ["old", "new"])
def test_one(lab): pass

@pytest.mark.parametrize("lab", ["old", "new"])
def test_two(lab): pass
"""
FILES = {
    "unit/test_short.py": "".join(f"def test_{n}(): pass\n" for n in range(5)),
    "vm/test_kmod.py": TWO_LABS,
    "vm/test_two_guests.py": "def test(): pass",
}
OPTIONS = ("-c", os.devnull, "-p", "tests.conftest", "-n", "1", "--dist", "loadfile")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The tests of all files as one process of pytest-xdist ran them."""
    directory = tmp_path_factory.mktemp("checkout")
    for name, text in FILES.items():
        path = directory / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "--rootdir", str(directory), *OPTIONS],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"PASSED tests/(\S+)", done.stdout)


def test_files_that_have_figures_are_there() -> None:
    named = {*longest_first.SECONDS, *longest_first.PER_LAB}
    assert [name for name in sorted(named) if not (CHECKOUT / name).exists()] == []


def test_longest_file_is_first_and_the_one_with_most_tests_is_not(
    ran: list[str],
) -> None:
    files = [name.partition("::")[0] for name in ran]
    assert files == [
        "vm/test_two_guests.py",
        *["vm/test_kmod.py"] * 4,
        *["unit/test_short.py"] * 5,
    ]


def test_each_lab_of_a_file_is_a_group(ran: list[str]) -> None:
    labs = [name.partition("[")[2] for name in ran if "test_kmod" in name]
    assert labs == ["old]", "old]", "new]", "new]"]
