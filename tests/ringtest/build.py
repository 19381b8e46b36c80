# SPDX-License-Identifier: Apache-2.0
"""Builds the C programs of this folder with the ring code of guest/ring."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RING = HERE.parents[1] / "guest" / "ring"

# The virtqueue, without what moves packets.
QUEUE = ("vq", "split", "packed", "packed_start", "mem")
WARNINGS = ("-Wall", "-Wextra", "-Werror")
# GCC warns that ThreadSanitizer takes no notice of fences: race.c knows that.
THREAD = ("-fsanitize=thread", "-Wno-tsan")
ADDRESS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


# What has a program use the packed format.
PACKED = "-DPACKED"


def build_on_machine(program: Path, source: str, *options: str) -> Path:
    """Build a program whose ring code runs on the machine of machine.c."""
    objects = []
    for name in QUEUE:
        objects.append(program.with_name(f"{program.name}-{name}.o"))
        _compile(objects[-1], *THREAD, "-c", str(RING / f"{name}.c"))
    # Linked without -fsanitize=thread: machine.c stands in for its library.
    sources = (str(HERE / source), str(HERE / "machine.c"))
    return _compile(program, *options, *sources, *map(str, objects))


def build_race(program: Path, *options: str) -> Path:
    """Build race.c, with more compiler options if there are any."""
    sources = (HERE / "race.c", *(RING / f"{name}.c" for name in QUEUE))
    return _compile(program, "-pthread", *options, *map(str, sources))


def build_kill(program: Path) -> Path:
    """Build kill.c, whose ring code can be killed before any store."""
    sources = (HERE / "kill.c", *(RING / f"{name}.c" for name in QUEUE))
    barrier = ("-include", str(HERE / "kill_barrier.h"))
    return _compile(program, *barrier, *map(str, sources))


def build_model(program: Path) -> Path:
    """Build model.c with all of the ring code, and with what CFLAGS says."""
    sources = [path for path in RING.glob("*.c") if not path.name.startswith("fuzz")]
    sources += [HERE / "model.c", HERE / "model_driver.c"]
    flags = shlex.split(os.environ.get("CFLAGS", ""))
    return _compile(program, "-pthread", *flags, *map(str, sorted(sources)))


def build_uring(program: Path) -> Path:
    """Build uring.c, which stands in for the kernel of guest/ring/uring.c."""
    wrap = ("-Wl,--wrap=syscall", "-Wl,--wrap=ioctl")
    return _compile(program, *wrap, str(HERE / "uring.c"), str(RING / "uring.c"))


def build_calls(program: Path, *options: str) -> Path:
    """Build calls.c with guest/ring/calls.c, and with more compiler options."""
    names = ("calls", "thread", "confine")
    sources = [HERE / "calls.c", *(RING / f"{name}.c" for name in names)]
    return _compile(program, "-pthread", *options, *map(str, sources))


def run(
    program: Path, *arguments: str, timeout: float = 50
) -> subprocess.CompletedProcess[str]:
    # What the environment preloads and suppresses for Python is wrong for these.
    unwanted = {"LD_PRELOAD", "TSAN_OPTIONS"}
    return subprocess.run(
        [*_steady_addresses(), program, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={k: v for k, v in os.environ.items() if k not in unwanted},
    )


def _steady_addresses() -> list[str]:
    """ThreadSanitizer of GCC 12 knows no mappings that 32 random bits lead to.

    Where the kernel has no more than 28, the default of Debian 12, nothing is
    needed, and setarch may be forbidden in a container.
    """
    bits = int(Path("/proc/sys/vm/mmap_rnd_bits").read_text())
    return ["setarch", "-R"] if bits > 28 else []


def _compile(output: Path, *arguments: str) -> Path:
    compiler = shutil.which("gcc")
    if not compiler:
        pytest.skip("gcc: not installed")
    language = ("-std=gnu11", "-O2", "-g", "-D_GNU_SOURCE", f"-I{RING}")
    subprocess.run(
        [compiler, *language, *WARNINGS, *arguments, "-o", str(output)], check=True
    )
    return output
