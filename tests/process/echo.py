# SPDX-License-Identifier: Apache-2.0
"""Many UDP flows to an echo: a packet that does not come back was lost.

Run as a program, this file is the echo; it runs until it is killed.
"""

import select
import socket
import time
from contextlib import ExitStack, suppress
from typing import Self

from tests.waiting import PROCESS_TIMEOUT

PORT = 7


class Flows:
    """UDP sockets, each with its own port, that send to an echo."""

    def __init__(self, host: str, count: int) -> None:
        self.lost = self.sent = 0
        self._stack = ExitStack()
        self._sockets = [
            self._stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            for _ in range(count)
        ]
        for sock in self._sockets:
            sock.setblocking(False)
            sock.connect((host, PORT))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def round(self, wait: float = PROCESS_TIMEOUT) -> int:
        """Send a packet in each flow; return how many were not back in `wait` seconds.

        Where none may be lost, a long `wait` costs nothing, and a packet that is only
        late on a loaded machine does not count as lost.
        """
        self.sent += len(self._sockets)
        missing = {}
        for sock in self._sockets:
            number = self.sent.to_bytes(8, "big") + bytes(200)
            sock.send(number)
            missing[sock] = number
        deadline = time.monotonic() + wait
        while missing and (left := deadline - time.monotonic()) > 0:
            for sock in select.select(list(missing), [], [], left)[0]:
                if sock.recv(1000) == missing[sock]:  # and not one of a round before
                    del missing[sock]
        self.lost += len(missing)
        return len(missing)

    def rounds(self, count: int) -> int:
        """Do some rounds; return how many packets were lost."""
        return sum(self.round() for _ in range(count))


def main() -> None:
    """Send everything back."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", PORT))
        print("ready", flush=True)
        while True:
            data, address = sock.recvfrom(1000)
            with suppress(OSError):
                sock.sendto(data, address)


if __name__ == "__main__":
    main()
