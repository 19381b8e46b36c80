# SPDX-License-Identifier: Apache-2.0
"""The ring's fuzzer, built with sanitizers and run without libFuzzer.

test_ring_libfuzzer.py runs it with libFuzzer.  An input with which that finds a bug
goes into corpus/ring, under a name that says what it reaches.
VHOSTPCI_FUZZ_RUNS says how many pseudo-random inputs to try as well.
"""

import os
import subprocess
from pathlib import Path

import pytest

from tests.fuzz.build import BY_HAND, FOUND, build_plain

RUNS = int(os.environ.get("VHOSTPCI_FUZZ_RUNS", "5000"))
FIRST = int(os.environ.get("VHOSTPCI_FUZZ_SEED", "1"))


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the fuzzer, to be run without libFuzzer."""
    return build_plain(tmp_path_factory.mktemp("fuzz") / "fuzz")


def run(fuzzer: Path, *arguments: str, timeout: float) -> None:
    done = subprocess.run(
        [fuzzer, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        # The fuzzer has its own address sanitizer; one preloaded for Python breaks it.
        env={k: v for k, v in os.environ.items() if k != "LD_PRELOAD"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "path", sorted(BY_HAND.iterdir()), ids=lambda path: str(path.name)
)
def test_inputs_of_the_corpus_are_survived(fuzzer: Path, path: Path) -> None:
    run(fuzzer, str(path), timeout=10)


def test_inputs_that_libfuzzer_has_found_are_survived(fuzzer: Path) -> None:
    paths = sorted(map(str, FOUND.iterdir()))
    assert paths
    run(fuzzer, *paths, timeout=120)


@pytest.mark.timeout(600 + RUNS / 100)
def test_pseudo_random_inputs_are_survived(fuzzer: Path) -> None:
    run(fuzzer, str(RUNS), str(FIRST), timeout=500 + RUNS / 100)
