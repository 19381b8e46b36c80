# SPDX-License-Identifier: Apache-2.0
"""The edges of daemon and agent, fuzzed by Atheris to what no input has reached yet.

All edges are fuzzed at a time, each for VHOSTPCI_FUZZ_SECONDS, by processes that give
way to all others.  They start with the corpus.  VHOSTPCI_FUZZ_FOUND names a directory
that is to keep what they find, for `python -m tests.fuzz.merge`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.fuzz.fuzzer import check, fuzzing
from tests.fuzz.inputs import EDGES, unpack

pytestmark = pytest.mark.atheris

SECONDS = int(os.environ.get("VHOSTPCI_FUZZ_SECONDS", "20"))


@contextmanager
def fuzz(edge: str, found: Path, corpus: Path) -> Iterator[subprocess.Popen[str]]:
    """Fuzz one edge; what is found goes into `found`."""
    found.mkdir(exist_ok=True, parents=True)
    argv: list[str | Path] = [
        *(sys.executable, "-m", "tests.fuzz.guided", edge),
        *(f"-max_total_time={SECONDS}", "-print_final_stats=1"),
        *(f"-artifact_prefix={found}/", found, unpack(edge, corpus)),
    ]
    with fuzzing(argv, {"PYTHONHASHSEED": "0"}) as process:
        yield process


@pytest.mark.timeout(SECONDS + 1800)
def test_guided_inputs_are_survived_at_all_edges(tmp_path: Path) -> None:
    found = Path(os.environ.get("VHOSTPCI_FUZZ_FOUND", tmp_path / "found"))
    with ExitStack() as running:
        processes = [
            running.enter_context(fuzz(edge, found / edge, tmp_path / edge))
            for edge in EDGES
        ]
        for process in processes:
            check(process, SECONDS)
