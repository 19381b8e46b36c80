# SPDX-License-Identifier: Apache-2.0
"""A program with a console: the test writes commands and reads the output."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Self

from tests.waiting import TIMEOUT


class Console:
    """A program with a console; its output is kept in a file.

    Args:
        argv: its command.
        log: the file that its output goes to.
        environment: its environment, in place of the test's.
    """

    def __init__(
        self, argv: list[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment,
            )

    def ended(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self.process.poll() is not None

    @property
    def log(self) -> str:
        """Return its output so far."""
        return self._log.read_text(errors="replace")

    @property
    def _input(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def write(self, line: str) -> int:
        """Write a line; return where in the log its answer begins."""
        before = len(self.log)
        self._input.write(line.encode() + b"\n")
        self._input.flush()
        return before

    def end_with(self, line: str) -> int:
        """Write the last line; return its exit status."""
        self.write(line)
        self._input.close()
        return self.process.wait(TIMEOUT)

    def kill(self) -> None:
        """Kill it with SIGKILL, if it has not ended."""
        self.process.kill()
        self.process.wait(TIMEOUT)
        if not self._input.closed:
            self._input.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
