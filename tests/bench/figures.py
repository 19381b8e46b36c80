# SPDX-License-Identifier: Apache-2.0
"""Figures: what was measured of us and of a peer, in turn, and what that says.

A figure is a ratio.  Both numbers of it come from the same run on the same machine, so
the ratio holds on a machine that is slow, emulated or shared; neither number does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

Measured = TypeVar("Measured")
Better = Literal["lower", "higher"]
Floats = npt.NDArray[np.float64]

LEAST_RUNS = 5
CONFIDENCE = 0.95
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing measured: a number for each run, ours and the peer's."""

    part: str
    name: str
    unit: str
    better: Better
    peer_name: str
    ours_runs: tuple[float, ...]
    peer_runs: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.ours_runs) != len(self.peer_runs):
            raise ValueError(f"{self.name}: ours and the peer's are not pairs")
        if min((*self.ours_runs, *self.peer_runs), default=0.0) <= 0:
            raise ValueError(f"{self.name}: there is a run that measured nothing")

    @property
    def ours(self) -> float:
        """Our median."""
        return float(np.median(self.ours_runs))

    @property
    def peer(self) -> float:
        """The peer's median."""
        return float(np.median(self.peer_runs))

    @property
    def ratio(self) -> float:
        """Ours over the peer's."""
        return self.ours / self.peer

    def limits(self, confidence: float = CONFIDENCE) -> tuple[float, float]:
        """Between which limits the ratio lies, by what the runs tell."""
        return limits(resampled(self), confidence)

    @property
    def is_better(self) -> bool:
        """Whether we are at least as good as the peer."""
        return self.ratio <= 1 if self.better == "lower" else self.ratio >= 1


def resampled(figure: Figure) -> Floats:
    """Return the ratios that other choices of the same runs would have given.

    That is the bootstrap: draw as many runs as there are, with repetition, again and
    again.  Run and peer's run are drawn together, since one moment has made both.
    """
    ours, peer = np.array(figure.ours_runs), np.array(figure.peer_runs)
    # The same draws each time: who reads a file twice reads the same limits.
    draws = np.random.default_rng(1).integers(len(ours), size=(_RESAMPLES, len(ours)))
    ratios: Floats = np.median(ours[draws], axis=1) / np.median(peer[draws], axis=1)
    return ratios


def limits(values: Floats, confidence: float) -> tuple[float, float]:
    """Return between which two values that part of all of them lies."""
    outside = 50 * (1 - confidence)
    low, high = np.percentile(values, [outside, 100 - outside])
    return float(low), float(high)


def steady_mean(values: Floats) -> float:
    """Return the mean without the lowest and the highest tenth.

    The highest ones were interrupted.  A median would not tell what each fourth burst
    costs more.
    """
    if not len(values):
        raise ValueError("a mean of nothing")
    ordered = np.sort(values)
    aside = len(ordered) // 10
    return float(ordered[aside : len(ordered) - aside].mean())


def in_turn(
    runs: int, ours: Callable[[], Measured], peer: Callable[[], Measured]
) -> tuple[list[Measured], list[Measured]]:
    """Measure both so many times; every other time the peer is first."""
    found = in_rounds(runs, {"ours": ours, "peer": peer})
    return found["ours"], found["peer"]


def in_rounds(
    runs: int, measures: Mapping[str, Callable[[], Measured]]
) -> dict[str, list[Measured]]:
    """Measure each once a round, by name; every other round goes backwards.

    What changes while we measure, such as the load, then meets all alike.
    """
    found: dict[str, list[Measured]] = {name: [] for name in measures}
    for run in range(runs):
        names = list(measures)
        for name in names if run % 2 == 0 else names[::-1]:
            found[name].append(measures[name]())
    return found
