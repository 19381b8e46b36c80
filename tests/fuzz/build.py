# SPDX-License-Identifier: Apache-2.0
"""Builds the ring's fuzzer: guest/ring/fuzz.c, with the ring code beside it."""

import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

RING = Path(__file__).resolve().parents[2] / "guest" / "ring"
CORPUS = Path(__file__).parent / "corpus"
BY_HAND = CORPUS / "ring"
"""Inputs that were written for what they reach, which their names say."""
FOUND = CORPUS / "found"
"""Inputs that libFuzzer has found: `python -m tests.fuzz.merge`."""

MASTER = ("fuzz", "fuzz_driver", "fuzz_packet")
CODE = (
    "mem",
    "vq",
    "split",
    "packed",
    "packed_start",
    "net",
    "rx",
    "segment",
    "tx",
    "capture",
)
OPTIONS = (
    *("-std=gnu11", "-O1", "-g", "-fno-omit-frame-pointer", "-D_GNU_SOURCE"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    f"-include{RING / 'fuzz_barrier.h'}",
)


def build_plain(program: Path) -> Path:
    """Build the fuzzer to run given or pseudo-random inputs, with any compiler."""
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("cc: no C compiler")
    sources = [RING / f"{name}.c" for name in (*MASTER, "fuzz_main", *CODE)]
    subprocess.run([compiler, *OPTIONS, *sources, "-o", program], check=True)
    return program


def build_guided(program: Path, *options: str) -> Path:
    """Build the fuzzer with libFuzzer, whose inputs are led by what they reach.

    Only the ring code counts as reached.  The fuzzer's own comparisons, at each access
    of the ring code, would take two thirds of the time.
    """

    def compile_all(names: Iterable[str], *more: str) -> list[Path]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda name: compile_one(name, *more), names))

    def compile_one(name: str, *more: str) -> Path:
        to = program.with_name(f"{name}.o")
        source = RING / f"{name}.c"
        words = [*OPTIONS, *options, *more, "-c", str(source), "-o", str(to)]
        subprocess.run(["clang", *words], check=True)
        return to

    objects = compile_all((*MASTER, "fuzz_mutate"))
    objects += compile_all(CODE, "-fsanitize=fuzzer-no-link")
    words = [*OPTIONS, *options, "-fsanitize=fuzzer", *map(str, objects)]
    subprocess.run(["clang", *words, "-o", program], check=True)
    return program
