# SPDX-License-Identifier: Apache-2.0
"""The ring's fuzzer, led by libFuzzer to what no input has reached yet.

Both formats are fuzzed at a time, each for VHOSTPCI_FUZZ_SECONDS, by processes that
give way to all others.  They start with the corpus.  VHOSTPCI_FUZZ_FOUND names a
directory that is to keep what they find, for `python -m tests.fuzz.merge`.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fuzz.build import BY_HAND, FOUND, build_guided
from tests.fuzz.fuzzer import check, fuzzing

pytestmark = pytest.mark.libfuzzer

SECONDS = int(os.environ.get("VHOSTPCI_FUZZ_SECONDS", "30"))
LONGEST = 1024
"""Bytes of an input: some two hundred steps."""


@contextmanager
def fuzz(program: Path, kind: str, found: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the fuzzer with rings of one format; what is found goes into `found`."""
    options = (
        *(f"-max_total_time={SECONDS}", f"-max_len={LONGEST}", "-timeout=60"),
        *("-print_final_stats=1", "-detect_leaks=0", f"-artifact_prefix={found}/"),
    )
    found.mkdir(exist_ok=True, parents=True)
    argv: list[str | Path] = [program, *options, found, FOUND, BY_HAND]
    with fuzzing(argv, {"VHOSTPCI_FUZZ_FORMAT": kind}) as process:
        yield process


@pytest.mark.timeout(SECONDS + 1800)
def test_guided_inputs_are_survived_in_both_formats(tmp_path: Path) -> None:
    program = build_guided(tmp_path / "fuzz")
    found = Path(os.environ.get("VHOSTPCI_FUZZ_FOUND", tmp_path / "found"))
    with (
        fuzz(program, "split", found / "split") as split,
        fuzz(program, "packed", found / "packed") as packed,
    ):
        check(split, SECONDS)
        check(packed, SECONDS)
