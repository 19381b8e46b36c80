# SPDX-License-Identifier: Apache-2.0
"""Many UDP flows, each packet of which comes back: what does not was lost.

As a program it is the other side: it sends everything back, until it is killed.
"""

import select
import socket
import time
from contextlib import ExitStack, suppress
from typing import Self

PORT = 7
WAIT = 2.0
"""Seconds until a packet that has not come back is lost."""


class Flows:
    """Sockets, each with a port of its own, that send to an echo."""

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

    def round(self) -> int:
        """Send a packet in each flow; return how many did not come back in time."""
        self.sent += len(self._sockets)
        missing = {}
        for sock in self._sockets:
            number = self.sent.to_bytes(8, "big") + bytes(200)
            sock.send(number)
            missing[sock] = number
        deadline = time.monotonic() + WAIT
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
