# SPDX-License-Identifier: Apache-2.0
"""The edges of daemon and agent: inputs that were found, and pseudo-random ones.

test_edges_guided.py looks for inputs.  One with which that found a bug stays in
corpus/EDGE.hex.  VHOSTPCI_FUZZ_INPUTS says how many pseudo-random ones to try.
"""

import os
import subprocess
import sys

import pytest

from tests.fuzz.inputs import EDGES, read

COUNT = int(os.environ.get("VHOSTPCI_FUZZ_INPUTS", "30"))
FIRST = int(os.environ.get("VHOSTPCI_FUZZ_SEED", "1"))


def replay(edge: str, what: str, timeout: float) -> None:
    # In a process without pytest, which would keep what the log's lines refer to.
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.replay", edge, what],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.mark.parametrize("edge", EDGES)
def test_inputs_that_were_found_are_survived(edge: str) -> None:
    assert read(edge)
    replay(edge, "corpus", timeout=200)


@pytest.mark.timeout(600 + COUNT)
@pytest.mark.parametrize("edge", EDGES)
def test_pseudo_random_inputs_are_survived(edge: str) -> None:
    replay(edge, f"{COUNT}@{FIRST}", timeout=200 + COUNT)
