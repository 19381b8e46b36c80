# SPDX-License-Identifier: Apache-2.0
"""What a part is asked for, and what it may answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench.figures import LEAST_RUNS, Figure


class CannotMeasure(Exception):
    """A part cannot run here; the text says what it lacks."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to measure."""

    quick: bool = False

    @property
    def runs(self) -> int:
        """Runs of each side; never fewer than medians need."""
        return LEAST_RUNS if self.quick else LEAST_RUNS + 2


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the benchmark."""

    name: str
    about: str
    measure: Callable[[Plan], Sequence[Figure]]
