# SPDX-License-Identifier: Apache-2.0
"""The ring's fuzzer, built with sanitizers and run without libFuzzer.

guest/ring/fuzz.c says how to build it with libFuzzer.  An input with which libFuzzer
finds a bug goes into corpus/ring, and this test runs it from then on.
VHOSTPCI_FUZZ_RUNS says how many pseudo-random inputs to try as well.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RING = HERE.parents[1] / "guest" / "ring"
CORPUS = sorted((HERE / "corpus" / "ring").iterdir())
RUNS = int(os.environ.get("VHOSTPCI_FUZZ_RUNS", "5000"))
FIRST = int(os.environ.get("VHOSTPCI_FUZZ_SEED", "1"))


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the fuzzer, to be run without libFuzzer."""
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("cc: no C compiler")
    program = tmp_path_factory.mktemp("fuzz") / "fuzz"
    names = ["fuzz", "fuzz_driver", "fuzz_main", "mem", "vq"]
    names += ["split", "packed", "net", "rx", "segment", "tx"]
    subprocess.run(
        [
            compiler,
            "-std=gnu11",
            "-O1",
            "-g",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            "-D_GNU_SOURCE",
            f"-include{RING / 'fuzz_barrier.h'}",
            *(str(RING / f"{name}.c") for name in names),
            "-o",
            str(program),
        ],
        check=True,
    )
    return program


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


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_inputs_of_the_corpus_are_survived(fuzzer: Path, path: Path) -> None:
    run(fuzzer, str(path), timeout=10)


@pytest.mark.timeout(600 + RUNS / 100)
def test_pseudo_random_inputs_are_survived(fuzzer: Path) -> None:
    run(fuzzer, str(RUNS), str(FIRST), timeout=500 + RUNS / 100)
