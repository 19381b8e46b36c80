# SPDX-License-Identifier: Apache-2.0
"""The picture as SVG: masters at the left, slaves at the right, devices between.

Each device has a row; a slave's box stands beside all rows of its devices.
"""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby

from vhostpci_shared.terminal import clean

from .topology import BAD, GOOD, WAITS, Link, Vm

_COLORS = {GOOD: "#1a7f37", WAITS: "#9a6700", BAD: "#cf222e"}
WIDTH, ROW, EDGE = 860, 84, 16
BOX, BOX_HEIGHT = 220, 52
LEFT, RIGHT = EDGE, WIDTH - EDGE - BOX
MIDDLE = (LEFT + BOX + RIGHT) // 2
LONGEST = {BOX: 26, 340: 52}
"""Characters that fit into so many units of width."""


def lines(links: Sequence[Link]) -> Iterator[str]:
    height = 2 * EDGE + ROW * max(len(links), 1)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">'
    )
    yield "<title>vhostpci: masters, devices and slaves</title>"
    yield '<rect width="100%" height="100%" fill="#ffffff"/>'
    if not links:
        yield _text(WIDTH // 2, height // 2, "no devices")
    top = EDGE
    for slave, group in groupby(links, key=lambda one: one.slave):
        devices = list(group)
        for row, one in enumerate(devices):
            yield from _device(one, top + ROW * row + (ROW - BOX_HEIGHT) // 2)
        margin = (ROW - BOX_HEIGHT) // 2
        yield from _box(RIGHT, top + margin, slave, ROW * len(devices) - 2 * margin)
        top += ROW * len(devices)
    yield "</svg>"


def _device(one: Link, top: int) -> Iterator[str]:
    color, at = _COLORS[one.kind], top + BOX_HEIGHT // 2
    yield from _box(LEFT, top, one.master, BOX_HEIGHT)
    dashed = "" if one.kind == GOOD else ' stroke-dasharray="5 4"'
    yield (
        f'<line x1="{LEFT + BOX}" y1="{at}" x2="{RIGHT}" y2="{at}" stroke="{color}" '
        f'stroke-width="2"{dashed}/>'
    )
    yield _text(MIDDLE, at - 22, one.name, bold=True)
    yield _text(MIDDLE, at - 6, one.state, color=color)
    rates = f"→ {one.down}   ← {one.up}" if one.down else ""
    for line, text in enumerate(filter(None, (rates, one.agent))):
        yield _text(MIDDLE, at + 16 + 15 * line, text, color="#57606a")


def _box(left: int, top: int, vm: Vm, height: int) -> Iterator[str]:
    dashed = ' stroke-dasharray="5 4"' if vm.pid is None else ""
    yield (
        f'<rect x="{left}" y="{top}" width="{BOX}" height="{height}" rx="8" '
        f'fill="#f6f8fa" stroke="#57606a"{dashed}/>'
    )
    at = top + height // 2
    yield _text(left + BOX // 2, at - 4, vm.name, bold=True, room=BOX)
    yield _text(left + BOX // 2, at + 14, vm.note, color="#57606a", room=BOX)


def _text(
    x: int,
    y: int,
    text: str,
    *,
    color: str = "#1f2328",
    bold: bool = False,
    room: int = 340,
) -> str:
    """Return a line of text around x; one that is too long is cut, whole in a title."""
    text = clean(text)
    most = LONGEST[room]
    shown = text if len(text) <= most else f"{text[: most - 1]}…"
    whole = f"<title>{escape(text)}</title>" if shown != text else ""
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x}" y="{y}" text-anchor="middle" fill="{color}"{weight}>'
        f"{whole}{escape(shown)}</text>"
    )
