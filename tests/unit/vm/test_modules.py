# SPDX-License-Identifier: Apache-2.0
"""A program in a VM gets the modules of the tests that it imports."""

import subprocess
import sys
from pathlib import Path

from tests.vm.image import CHECKOUT
from tests.vm.modules import sources

MODULE = "tests.fakes.back_end"


def test_module_can_be_imported_where_there_is_nothing_else_of_the_tests(
    tmp_path: Path,
) -> None:
    for source in sources(MODULE):
        copy = tmp_path / source
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((CHECKOUT / source).read_bytes())
    # An isolated Python has neither PYTHONPATH nor this directory in sys.path.
    script = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {MODULE}"
    command = [sys.executable, "-I", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
