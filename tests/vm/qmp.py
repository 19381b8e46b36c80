# SPDX-License-Identifier: Apache-2.0
"""QEMU's monitor: one command at a time; events are kept for a later wait."""

import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

TIMEOUT = 60.0

Message = dict[str, Any]


class QmpError(Exception):
    """QEMU refused a command."""


class Qmp:
    """A connection to a monitor, after the greeting."""

    def __init__(self, path: Path) -> None:
        self._events: list[Message] = []
        self._data = b""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(TIMEOUT)
            self._socket.connect(str(path))
            self._receive(time.monotonic() + TIMEOUT)
            self.execute("qmp_capabilities", {})
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def execute(self, command: str, arguments: Message, fds: Sequence[int] = ()) -> Any:
        """Execute a command, with descriptors beside it; return what it returned."""
        request = {"execute": command, "arguments": arguments}
        socket.send_fds(self._socket, [json.dumps(request).encode() + b"\n"], fds)
        deadline = time.monotonic() + TIMEOUT
        while message := self._receive(deadline):
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                raise QmpError(f"{command}: {message['error']['desc']}")
            elif "return" in message:
                return message["return"]
        raise QmpError(f"{command}: QEMU hung up, or is silent")

    def deleted(self, device: str, timeout: float) -> bool:
        """Wait until ``device`` is unplugged; return whether it is."""
        deadline = time.monotonic() + timeout
        while True:
            for event in self._events:
                data = event.get("data", {})
                if (event["event"], data.get("device")) == ("DEVICE_DELETED", device):
                    self._events.remove(event)
                    return True
            message = self._receive(deadline)
            if message is None:
                return False
            self._events.append(message)

    def _receive(self, deadline: float) -> Message | None:
        """Return the next message; None after the deadline, or if QEMU hung up."""
        while b"\n" not in self._data:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                return None
            if not data:
                return None
            self._data += data
        line, _, self._data = self._data.partition(b"\n")
        message: Message = json.loads(line)
        return message
