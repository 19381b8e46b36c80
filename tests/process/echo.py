# SPDX-License-Identifier: Apache-2.0
"""Many UDP flows to an echo: a packet that never comes back was lost.

Run as a program, this file is the echo; it runs until it is killed.
"""

import select
import socket
from contextlib import ExitStack, suppress
from typing import Self

from tests.waiting import PROCESS_TIMEOUT

PORT = 7


class Flows:
    """UDP sockets, each with its own port, that send to an echo."""

    def __init__(self, host: str, count: int) -> None:
        self._round = 0
        self._stack = ExitStack()
        self._missing: dict[socket.socket, set[int]] = {}
        """The rounds of which a flow has no packet back."""
        for _ in range(count):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._missing[self._stack.enter_context(sock)] = set()
            sock.setblocking(False)
            sock.connect((host, PORT))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def sent(self) -> int:
        """How many packets were sent."""
        return self._round * len(self._missing)

    @property
    def lost(self) -> int:
        """How many packets have not come back, neither in their round nor later."""
        return sum(map(len, self._missing.values()))

    def round(self, wait: float = PROCESS_TIMEOUT) -> int:
        """Send a packet in each flow; return how many of them are not back.

        The round ends when all are back, or after `wait` seconds in which no packet of
        any round has come.  A packet that comes during a later round is not lost, so
        `wait` may be short where some may be lost.
        """
        self._round += 1
        for sock, missing in self._missing.items():
            sock.send(self._round.to_bytes(8, "big") + bytes(200))
            missing.add(self._round)
        while self._not_back():
            ready, _, _ = select.select(list(self._missing), [], [], wait)
            if not ready:
                break
            for sock in ready:
                number = int.from_bytes(sock.recv(1000)[:8], "big")
                self._missing[sock].discard(number)
        return self._not_back()

    def _not_back(self) -> int:
        return sum(self._round in missing for missing in self._missing.values())

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
