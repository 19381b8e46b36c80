# SPDX-License-Identifier: Apache-2.0
"""A process that fuzzes for a while, led by libFuzzer, and gives way to all others."""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.vm.patience import Patience


@contextmanager
def fuzzing(
    argv: Sequence[str | Path], environment: Mapping[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """Run a fuzzer until the block ends, with more variables in its environment."""
    process = subprocess.Popen(
        ["nice", "-n", "15", *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, **environment},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def check(process: subprocess.Popen[str], seconds: int) -> None:
    """Wait for the end of a fuzzer that runs for so long; it must have survived.

    What the others leave may be little for a while: the time in which it waits for a
    processor does not count.
    """
    log = _log(process, Patience(seconds + 120, lambda: process.pid))
    # A failure's input stands at the end of the log, also in base64.
    assert process.returncode == 0, log[-6000:]
    units = re.search(r"stat::number_of_executed_units: (\d+)", log)
    assert units, log[-4000:]
    # How many is up to what the others leave of the processor.
    assert int(units[1]) > 0, log[-4000:]


def _log(process: subprocess.Popen[str], patience: Patience) -> str:
    while True:
        try:
            return process.communicate(timeout=1)[1]
        except subprocess.TimeoutExpired:
            assert not patience.is_over(), f"{process.args!r} runs after {patience}"
