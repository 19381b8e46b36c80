# SPDX-License-Identifier: Apache-2.0
"""Requests and their responses: the client of echo.c, and the highest rate."""

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.bench.figures import Floats
from tests.bench.plan import CannotMeasure

PORT = 7
PROBE_SECONDS = 0.25
TRIES = 3
LOSS = 0.002
"""Part of the requests that a rate without loss may lose."""
PATIENCE_US = 250_000.0
"""So long the client waits for the last responses: LATE of echo.c."""
LOWEST_RATE = 250.0
FIRST_RATE = 4000.0
HIGHEST_RATE = 1_024_000.0
HALVINGS = 3
STEP = 1.15
STEPS = 3
"""So much, so often, a rate may grow from one search to the next."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run of the client has seen."""

    sent: int
    microseconds: Floats

    @classmethod
    def parse(cls, text: str) -> "Sample":
        """Understand the client's line."""
        sent, *times = text.split()
        return cls(int(sent), np.array(times, dtype=np.float64) / 1000)

    @property
    def loss(self) -> float:
        """Part of the requests without a response."""
        return 1 - len(self.microseconds) / self.sent if self.sent else 1.0

    def percentile(self, percent: float) -> float:
        """Return the microseconds within which that part of all requests is answered.

        One without a response counts as if the client had given up just then: else a
        way that loses what is slow would be a fast one.
        """
        lost = np.full(self.sent - len(self.microseconds), PATIENCE_US)
        all_of_them = np.concatenate([self.microseconds, lost])
        return float(np.percentile(all_of_them, percent))


Client = Callable[[float, float], Sample]
"""Sends so many requests a second, for so many seconds."""


def client(
    program: Path, prefix: Sequence[str], address: str, rate: float, seconds: float
) -> Sample:
    """Run the client in a network namespace."""
    words = (address, str(PORT), f"{rate:.0f}", f"{seconds:g}")
    done = subprocess.run(
        [*prefix, str(program), "client", *words],
        check=True,
        capture_output=True,
        text=True,
    )
    return Sample.parse(done.stdout)


class Search:
    """Looks for the highest rate at which nothing is lost, again and again.

    The first search begins anywhere, and each other one where the last one has ended,
    so that it takes a second or two.
    """

    def __init__(self, send: Client, halvings: int = HALVINGS) -> None:
        self._send = send
        self._halvings = halvings
        self._found: float | None = None

    def __call__(self) -> float:
        """Return the rate.

        Raises:
            CannotMeasure: requests are lost at any rate.
        """
        self._found = self._first() if self._found is None else self._near(self._found)
        return self._found

    def _first(self) -> float:
        low = self._down(FIRST_RATE, 2)
        high = 2 * low
        while high <= HIGHEST_RATE and self._holds(high):
            low, high = high, 2 * high
        for _ in range(self._halvings):
            middle = (low + high) / 2
            if self._holds(middle):
                low = middle
            else:
                high = middle
        return low

    def _near(self, last: float) -> float:
        rate = self._down(last, STEP)
        if rate < last:
            return rate
        for _ in range(STEPS):
            if not self._holds(rate * STEP):
                break
            rate *= STEP
        return rate

    def _down(self, rate: float, factor: float) -> float:
        while not self._holds(rate):
            if rate / factor < LOWEST_RATE:
                raise CannotMeasure(f"requests are lost at {rate:.0f} a second")
            rate /= factor
        return rate

    def _holds(self, rate: float) -> bool:
        """Whether nothing is lost; what is lost once may be the machine's fault."""
        return any(self._send(rate, PROBE_SECONDS).loss <= LOSS for _ in range(TRIES))
