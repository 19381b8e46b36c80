# SPDX-License-Identifier: Apache-2.0
"""A part's figures as a picture: a bar for each ratio, and a line where the peer is."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from matplotlib.axis import Axis
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from tests.bench.figures import Figure

AHEAD, BEHIND = "#2a9d8f", "#e76f51"
DOTS_PER_INCH = 80
COLOURS = 32
WIDE = 100
"""Highest over lowest ratio from which on only powers of ten are marked."""


def draw(figures: Sequence[Figure], title: str, path: Path) -> None:
    """Draw the figures of one part into a PNG file.

    The axis is logarithmic: half and double are equally far from the peer's line, where
    all bars begin.
    """
    canvas = Canvas(figsize=(8, 1.2 + 0.26 * len(figures)), layout="constrained")
    axes = canvas.subplots()
    places = range(len(figures))
    ratios = [figure.ratio for figure in figures]
    reach = [figure.limits() for figure in figures]
    beyond = [
        [max(0.0, r - low) for r, (low, _) in zip(ratios, reach, strict=True)],
        [max(0.0, high - r) for r, (_, high) in zip(ratios, reach, strict=True)],
    ]
    axes.set_xscale("log")
    axes.barh(
        places,
        [ratio - 1 for ratio in ratios],
        left=1,
        xerr=beyond,
        color=[AHEAD if figure.is_better else BEHIND for figure in figures],
        error_kw={"ecolor": "#333333", "elinewidth": 1},
    )
    axes.axvline(1, color="black", linewidth=1)
    _mark(axes.xaxis, min(low for low, _ in reach), max(high for _, high in reach))
    axes.set_yticks(places, [_label(figure) for figure in figures], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"ours over {_peer(figures)}, with 95 % confidence")
    axes.margins(y=0.01)
    canvas.suptitle(title, fontsize=9)
    drawn = BytesIO()
    canvas.savefig(drawn, dpi=DOTS_PER_INCH)
    # Few colours make a small file, which git can keep; it has no date in it.
    with Image.open(drawn) as picture:
        picture.convert("RGB").quantize(COLOURS).save(path, optimize=True)


def _mark(axis: Axis, low: float, high: float) -> None:
    """Write numbers at the axis that a person reads: 0.5 and not 5 times ten to -1."""
    wide = max(high, 1) / min(low, 1) > WIDE
    axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _peer(figures: Sequence[Figure]) -> str:
    names = {figure.peer_name for figure in figures}
    return names.pop() if len(names) == 1 else "the peer"


def _label(figure: Figure) -> str:
    arrow = (
        "\N{LEFTWARDS ARROW}" if figure.better == "lower" else "\N{RIGHTWARDS ARROW}"
    )
    return f"{figure.name}  {arrow}"
