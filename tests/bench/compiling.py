# SPDX-License-Identifier: Apache-2.0
"""Compiling the benchmark's programs, with the ring's sources as they are in use."""

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.bench.plan import CannotMeasure

HERE = Path(__file__).parent
RING = HERE.parents[1] / "guest" / "ring"
NOT_ON_THE_WAY = {"guard.c"}
"""Files that no packet meets, beside the fuzzer."""

COMMON = ("-O2", "-std=gnu11", "-D_GNU_SOURCE", "-pthread", f"-I{RING}")
OURS = (*COMMON, "-fno-strict-aliasing")
"""As in guest/ring/build.py."""


def ring_sources(*, without: Iterable[str] = ()) -> list[Path]:
    """Return the C files on the way of a packet."""
    aside = NOT_ON_THE_WAY | set(without)
    paths = [path for path in RING.glob("*.c") if not path.name.startswith("fuzz")]
    return sorted(path for path in paths if path.name not in aside)


def require(*tools: str) -> None:
    """Check that programs are installed.

    Raises:
        CannotMeasure: one is not.
    """
    for tool in tools:
        if not shutil.which(tool):
            raise CannotMeasure(f"{tool} is not installed; tools/setup bench does it")


def compile_object(source: Path, flags: Sequence[str], directory: Path) -> Path:
    """Compile one file."""
    to = directory / f"{source.stem}.o"
    subprocess.run(["gcc", *flags, "-c", source, "-o", to], check=True)
    return to


def link(
    objects: Sequence[Path], program: Path, *libraries: str, flags: Sequence[str] = ()
) -> Path:
    """Link objects to a program; return its path."""
    links = [f"-l{name}" for name in libraries]
    subprocess.run(
        ["gcc", "-pthread", *flags, *objects, *links, "-o", program], check=True
    )
    return program
