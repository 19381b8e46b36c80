# SPDX-License-Identifier: Apache-2.0
"""The status socket: it answers each connection with one JSON text, and closes it."""

import json
import logging
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

RUN_DIR = Path("/run/vhostpci-guest")
_SUFFIX = ".sock"
_TIMEOUT = 1.0
"""Seconds that `ask` waits for an agent; its loop answers within milliseconds."""

Status = list[dict[str, Any]]


class Control:
    """Answers `vhostpci-guest status`.

    Args:
        directory: where the socket is made; created with mode 0700 if it is missing.

    Raises:
        OSError: the directory or the socket cannot be made.
    """

    def __init__(self, directory: Path = RUN_DIR) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Remove the sockets of agents that were killed.
        for path in directory.glob(f"*{_SUFFIX}"):
            with suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
                _connect(sock, path)
        self._path = directory / f"{os.getpid()}{_SUFFIX}"
        self._undo = ExitStack()
        with ExitStack() as undo:
            self._socket = undo.enter_context(
                socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            )
            self._path.unlink(missing_ok=True)  # of an earlier process with our PID
            self._socket.bind(str(self._path))
            undo.callback(self._path.unlink, missing_ok=True)
            self._path.chmod(0o600)
            self._socket.listen()
            self._undo = undo.pop_all()

    def fileno(self) -> int:
        """Return the socket, which is readable when there are connections."""
        return self._socket.fileno()

    def look(self, status: Callable[[], Status]) -> None:
        """Answer all connections that have arrived."""
        while True:
            try:
                connection, _address = self._socket.accept()
            except BlockingIOError:
                return
            with connection, suppress(OSError):
                # The loop must not wait for who asks.  The answer is a few KiB and the
                # socket's buffer is empty, so it fits.
                connection.setblocking(False)
                connection.sendall(json.dumps(status()).encode())

    def close(self) -> None:
        """Remove the socket."""
        self._undo.close()


def ask(directory: Path = RUN_DIR) -> Status:
    """Return the status of all devices of all running agents.

    Raises:
        OSError: we may not connect.
    """
    found = []
    for path in sorted(directory.glob(f"*{_SUFFIX}")):
        found += [{"pid": int(path.stem), **link} for link in _ask(path)]
    return found


def _connect(sock: socket.socket, path: Path) -> bool:
    """Connect to an agent; remove the socket of one that was killed."""
    sock.settimeout(_TIMEOUT)
    try:
        sock.connect(str(path))
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return False
    return True


def _ask(path: Path) -> Status:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            if not _connect(sock, path):
                return []
            text = b"".join(iter(lambda: sock.recv(65536), b""))
        except TimeoutError:
            log.warning("agent %s does not answer", path.stem)
            return []
    status: Status = json.loads(text)
    return status
