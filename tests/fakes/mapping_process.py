# SPDX-License-Identifier: Apache-2.0
"""A process that maps a file, as a QEMU maps its memory."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CODE = """
import mmap, sys
path, *flags = sys.argv[1:]
with open(path, "r+b") as file:
    maps = [mmap.mmap(file.fileno(), 0, getattr(mmap, flag)) for flag in flags]
print("mapped", flush=True)
sys.stdin.read()
"""


@contextmanager
def mapped_by_a_process(path: Path, *flags: str) -> Iterator[int]:
    """Start a process that maps the file once with each of `flags`; yield its PID."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", _CODE, path, *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"mapped\n"
        yield process.pid
        process.stdin.close()
