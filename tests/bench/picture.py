# SPDX-License-Identifier: Apache-2.0
"""A part's figures as a picture: a bar for each ratio, and a line where the peer is."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure as Canvas

from tests.bench.figures import Figure

AHEAD, BEHIND = "#2a9d8f", "#e76f51"
DOTS_PER_INCH = 80


def draw(figures: Sequence[Figure], title: str, path: Path) -> None:
    """Draw the figures of one part into a PNG file."""
    canvas = Canvas(figsize=(8, 1.2 + 0.26 * len(figures)), layout="constrained")
    axes = canvas.subplots()
    places = range(len(figures))
    ratios = [figure.ratio for figure in figures]
    reach = [figure.limits() for figure in figures]
    beyond = [
        [max(0.0, r - low) for r, (low, _) in zip(ratios, reach, strict=True)],
        [max(0.0, high - r) for r, (_, high) in zip(ratios, reach, strict=True)],
    ]
    axes.barh(
        places,
        ratios,
        xerr=beyond,
        color=[AHEAD if figure.is_better else BEHIND for figure in figures],
        error_kw={"ecolor": "#333333", "elinewidth": 1},
    )
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(places, [_label(figure) for figure in figures], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"ours over {figures[0].peer_name}, with 95 % confidence")
    axes.set_title(title, fontsize=9)
    # No date and no version: the same figures give the same file.
    canvas.savefig(path, dpi=DOTS_PER_INCH, metadata={"Software": None})


def _label(figure: Figure) -> str:
    arrow = (
        "\N{LEFTWARDS ARROW}" if figure.better == "lower" else "\N{RIGHTWARDS ARROW}"
    )
    return f"{figure.name}  {arrow}"
