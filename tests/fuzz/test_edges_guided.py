# SPDX-License-Identifier: Apache-2.0
"""The edges of daemon and agent, fuzzed by Atheris to what no input has reached yet.

All edges are fuzzed at a time, each for VHOSTPCI_FUZZ_SECONDS, by processes that give
way to all others.  They start with the corpus.  VHOSTPCI_FUZZ_FOUND names a directory
that is to keep what they find, for `python -m tests.fuzz.merge`.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.fuzz.inputs import EDGES, unpack

pytestmark = pytest.mark.atheris

SECONDS = int(os.environ.get("VHOSTPCI_FUZZ_SECONDS", "20"))


@contextmanager
def fuzz(edge: str, found: Path, corpus: Path) -> Iterator[subprocess.Popen[str]]:
    """Fuzz one edge; what is found goes into `found`."""
    found.mkdir(exist_ok=True, parents=True)
    process = subprocess.Popen(
        [
            *("nice", "-n", "15", sys.executable, "-m", "tests.fuzz.guided", edge),
            *(f"-max_total_time={SECONDS}", "-print_final_stats=1"),
            *(f"-artifact_prefix={found}/", found, unpack(edge, corpus)),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | {"PYTHONHASHSEED": "0"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def check(process: subprocess.Popen[str]) -> None:
    """Wait for a fuzzer's end; the daemon or agent has survived what it tried."""
    _, log = process.communicate(timeout=SECONDS + 300)
    # A failure's input stands at the end of the log, also in base64.
    assert process.returncode == 0, log[-6000:]
    units = re.search(r"stat::number_of_executed_units: (\d+)", log)
    assert units, log[-4000:]
    # How many is up to what the others leave of the processor.
    assert int(units[1]) > 0, log[-4000:]


@pytest.mark.timeout(SECONDS + 600)
def test_guided_inputs_are_survived_at_all_edges(tmp_path: Path) -> None:
    found = Path(os.environ.get("VHOSTPCI_FUZZ_FOUND", tmp_path / "found"))
    with ExitStack() as running:
        processes = [
            running.enter_context(fuzz(edge, found / edge, tmp_path / edge))
            for edge in EDGES
        ]
        for process in processes:
            check(process)
