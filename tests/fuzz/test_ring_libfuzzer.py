# SPDX-License-Identifier: Apache-2.0
"""The ring's fuzzer, led by libFuzzer to what no input has reached yet.

Both formats are fuzzed at a time, each for VHOSTPCI_FUZZ_SECONDS, by processes that
give way to all others.  They start with the corpus.  VHOSTPCI_FUZZ_FOUND names a
directory that is to keep what they find, for `python -m tests.fuzz.merge`.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fuzz.build import BY_HAND, FOUND, build_guided

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
    process = subprocess.Popen(
        ["nice", "-n", "15", program, *options, found, FOUND, BY_HAND],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | {"VHOSTPCI_FUZZ_FORMAT": kind},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def check(process: subprocess.Popen[str]) -> None:
    """Wait for a fuzzer's end; it must have survived what it tried."""
    _, log = process.communicate(timeout=SECONDS + 300)
    # A failure's input stands at the end of the log, also in base64.
    assert process.returncode == 0, log[-4000:]
    units = re.search(r"stat::number_of_executed_units: (\d+)", log)
    assert units, log[-4000:]
    # How many is up to what the others leave of the processor.
    assert int(units[1]) > 0, log[-4000:]


@pytest.mark.timeout(SECONDS + 600)
def test_guided_inputs_are_survived_in_both_formats(tmp_path: Path) -> None:
    program = build_guided(tmp_path / "fuzz")
    found = Path(os.environ.get("VHOSTPCI_FUZZ_FOUND", tmp_path / "found"))
    with (
        fuzz(program, "split", found / "split") as split,
        fuzz(program, "packed", found / "packed") as packed,
    ):
        check(split)
        check(packed)
