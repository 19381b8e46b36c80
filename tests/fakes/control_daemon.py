# SPDX-License-Identifier: Apache-2.0
"""A daemon's control socket, with answers that the test chooses."""

import json
import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.waiting import TIMEOUT


class ControlDaemon:
    """Answers each command at a control socket with what the test gives for it.

    Args:
        path: the control socket.
        results: the result of each command; a command that is missing is refused.
        line: the answer to each command, instead of one with a result.
    """

    def __init__(
        self, path: Path, results: Mapping[str, Any], line: bytes | None = None
    ) -> None:
        self._results = results
        self._line = line
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(os.fspath(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while True:
            try:
                connection, _address = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as lines:
                connection.settimeout(TIMEOUT)
                command = json.loads(lines.readline())["command"]
                connection.sendall(self._answer(command))

    def _answer(self, command: str) -> bytes:
        if self._line is not None:
            return self._line
        answer: dict[str, Any] = {"ok": False, "error": f"no {command} here"}
        if command in self._results:
            answer = {"ok": True, "result": self._results[command]}
        return json.dumps(answer).encode() + b"\n"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        # close() alone does not end an accept() in another thread.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(TIMEOUT)
        self._listener.close()


def leave_behind(path: Path) -> None:
    """Leave a socket file at which no process listens, as a killed daemon does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(os.fspath(path))
