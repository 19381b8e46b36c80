# SPDX-License-Identifier: Apache-2.0
"""A report: the figures with the machine that they come from, as table and as JSON."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import machine
from tests.bench.figures import Better, Figure
from tests.bench.machine import Load

PACKET_TIME = "ns/packet"
"""A unit that the table also shows as million packets a second, ours."""


class ReportError(Exception):
    """A file is not a report."""


@dataclass(frozen=True, slots=True)
class Report:
    """All that one call of the benchmark has found."""

    machine: str
    kernel: str
    commit: str
    load: Load
    """The highest before any part."""
    figures: tuple[Figure, ...]

    @classmethod
    def here(cls, figures: Sequence[Figure], loads: Sequence[Load]) -> "Report":
        """Return the report of this machine."""
        load = max(loads, key=lambda load: load.others)
        return cls(
            machine.name(),
            platform.release(),
            machine.commit(),
            load,
            tuple(figures),
        )

    def write(self, path: Path) -> None:
        """Write it as JSON, in one step."""
        data = {
            "machine": self.machine,
            "kernel": self.kernel,
            "commit": self.commit,
            "load": {"average": self.load.average, "others": self.load.others},
            "busy": self.load.busy,
            "figures": [_json(figure) for figure in self.figures],
        }
        part = path.with_name(f"{path.name}.part")
        part.write_text(json.dumps(data, indent=1) + "\n")
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Report":
        """Read what :meth:`write` wrote.

        Raises:
            OSError: the file cannot be read.
            ReportError: it is no report.
        """
        try:
            data = json.loads(path.read_text())
            load = Load(data["load"]["average"], data["load"]["others"])
            figures = tuple(_figure(figure) for figure in data["figures"])
            return cls(data["machine"], data["kernel"], data["commit"], load, figures)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ReportError(
                f"{path} is not a report of make bench --json: {error!r}"
            ) from error


def _json(figure: Figure) -> dict[str, object]:
    low, high = figure.limits()
    return {
        "part": figure.part,
        "name": figure.name,
        "unit": figure.unit,
        "ours": figure.ours,
        "peer": figure.peer,
        "peer_name": figure.peer_name,
        "ratio": figure.ratio,
        "ratio_low": low,
        "ratio_high": high,
        "better": figure.better,
        "runs": len(figure.ours_runs),
        "ours_runs": figure.ours_runs,
        "peer_runs": figure.peer_runs,
    }


def _figure(data: dict[str, str]) -> Figure:
    better: Better = "lower" if data["better"] == "lower" else "higher"
    return Figure(
        data["part"],
        data["name"],
        data["unit"],
        better,
        data["peer_name"],
        tuple(map(float, data["ours_runs"])),
        tuple(map(float, data["peer_runs"])),
    )


def number(value: float) -> str:
    """Return three digits of it, without an exponent."""
    if value >= 1000:
        return f"{value:,.0f}"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f}"


def ratio(value: float) -> str:
    """Return two digits behind the point, or more where these would be zeros."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.4f}"


def table(figures: Sequence[Figure]) -> str:
    """Return the figures of one part, a line each; `*`: the peer is ahead."""
    rows = [("", "unit", "ours", "peer", "ratio", "95 %", "", "Mpps")]
    for figure in figures:
        low, high = figure.limits()
        rows.append(
            (
                figure.name,
                figure.unit,
                number(figure.ours),
                number(figure.peer),
                ratio(figure.ratio),
                f"{ratio(low)}-{ratio(high)}",
                "" if figure.is_better else "*",
                number(1000 / figure.ours) if figure.unit == PACKET_TIME else "",
            )
        )
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Align the first two columns left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
