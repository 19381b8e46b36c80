# SPDX-License-Identifier: Apache-2.0
"""What changed between two reports, beyond noise."""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.figures import Figure, limits, resampled
from tests.bench.report import Report, aligned

CONFIDENCE = 0.99
"""Of each figure: of a hundred that did not change, one is said to have."""
LEAST_CHANGE = 0.03
"""A smaller one is not worth a line, however sure it is."""


HEADINGS = ("", "part", "ratio before", "after", "factor", "99 %", "")


@dataclass(frozen=True, slots=True)
class Change:
    """A figure of both reports."""

    before: Figure
    after: Figure

    @property
    def factor(self) -> float:
        """By how much its ratio has grown."""
        return self.after.ratio / self.before.ratio

    def limits(self) -> tuple[float, float]:
        """Between which limits the factor lies, by what the runs tell."""
        return limits(resampled(self.after) / resampled(self.before)[::-1], CONFIDENCE)

    @property
    def beyond_noise(self) -> bool:
        """Whether it has changed."""
        low, high = self.limits()
        sure = low > 1 or high < 1
        return sure and abs(self.factor - 1) >= LEAST_CHANGE

    @property
    def is_better(self) -> bool:
        """Whether the change is one for the better."""
        return (self.factor < 1) == (self.after.better == "lower")


def changes(before: Report, after: Report) -> list[Change]:
    """Return the figures that both have, with the same peer."""
    old = {_key(figure): figure for figure in before.figures}
    return [
        Change(old[_key(figure)], figure)
        for figure in after.figures
        if _key(figure) in old
    ]


def _key(figure: Figure) -> tuple[str, str, str]:
    return figure.part, figure.name, figure.peer_name


def text(before: Report, after: Report) -> str:
    """Return what a person wants to know of it."""
    both = changes(before, after)
    lines = list(_warnings(before, after))
    changed = [change for change in both if change.beyond_noise]
    if changed:
        lines += ["", aligned([HEADINGS, *map(_row, changed)]), ""]
    lines.append(f"{len(changed)} of {len(both)} figures changed beyond noise.")
    for report, other, what in (
        (before, after, "first"),
        (after, before, "second"),
    ):
        there = {_key(figure) for figure in other.figures}
        only = [f for f in report.figures if _key(f) not in there]
        if only:
            names = ", ".join(f"{f.part}: {f.name}" for f in only)
            lines.append(f"Only in the {what} report: {names}.")
    return "\n".join(lines)


def _warnings(before: Report, after: Report) -> Iterator[str]:
    for report, what in ((before, "first"), (after, "second")):
        yield f"The {what} report: {report.commit}, {report.machine}, {report.load}."
        if report.load.busy:
            yield f"Its machine was too busy to measure well: {report.load}."
    if (before.machine, before.kernel) != (after.machine, after.kernel):
        yield "The two machines or their kernels differ, so the ratios may, too."


def _row(change: Change) -> tuple[str, ...]:
    low, high = change.limits()
    return (
        change.after.name,
        change.after.part,
        f"{change.before.ratio:.2f}",
        f"{change.after.ratio:.2f}",
        f"{change.factor:.2f}",
        f"{low:.2f}-{high:.2f}",
        "better" if change.is_better else "worse",
    )
