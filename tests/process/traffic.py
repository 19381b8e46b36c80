# SPDX-License-Identifier: Apache-2.0
"""Numbered packets that go both ways all the time: to an echo, and back.

    Traffic ── mtap0 ── master's rings ── agent ── vp0 ── echo.py
    (a thread of the test)                         (a process in the slave's namespace)

Each packet is sent once, and nothing sends it again: one that does not come back was
lost, and the time between two that have come back is how long the link was down.
"""

import select
import socket
import threading
import time
from contextlib import suppress
from itertools import pairwise
from typing import Self

from tests.process.echo import PORT

PERIOD = 0.01
"""Seconds from one packet to the next."""


class Traffic:
    """Sends until the block ends, from the network namespace of the calling thread.

    Args:
        host: where the echo is.
    """

    def __init__(self, host: str) -> None:
        self._to = (host, PORT)
        self._lock = threading.Lock()
        self._sent: list[float] = []
        self._back: dict[int, float] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            while not self._end.is_set():
                self._send(sock)
                due = time.monotonic() + PERIOD
                while (left := due - time.monotonic()) > 0:
                    if select.select([sock], [], [], left)[0]:
                        self._receive(sock)

    def _send(self, sock: socket.socket) -> None:
        with self._lock:
            number = len(self._sent)
            self._sent.append(time.monotonic())
        # There may be no interface now, or nothing that answers for the address.
        with suppress(OSError):
            sock.sendto(number.to_bytes(8, "big"), self._to)

    def _receive(self, sock: socket.socket) -> None:
        with suppress(OSError):  # what went wrong with an earlier packet
            number = int.from_bytes(sock.recv(100), "big")
            with self._lock:
                self._back.setdefault(number, time.monotonic())

    def back_since(self, start: float) -> int:
        """Return how many packets that were sent after `start` have come back."""
        with self._lock:
            return sum(self._sent[number] >= start for number in self._back)

    def gap(self, start: float, end: float) -> float:
        """Return the longest time between two times in which no packet came back."""
        with self._lock:
            back = sorted(at for at in self._back.values() if start <= at < end)
        times = [start, *back, end]
        return max(b - a for a, b in pairwise(times))
