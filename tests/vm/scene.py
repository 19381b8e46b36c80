# SPDX-License-Identifier: Apache-2.0
"""The drawings of the demos: boxes that fill in, and the packets between them.

A drawing is text with a style for each part, as `rich` takes it, and knows no terminal.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

WIDTH = 76
"""Columns of both drawings."""

Line = list[tuple[str, str]]
"""Texts, each with its style."""
ARROWS = (("up", "►"), ("down", "◄"))
"""Each direction between a master and its slave, as the drawing has it."""

_HISTORY = 13
_BARS = " ▁▂▃▄▅▆▇█"
_ASCII = str.maketrans("╭╮╰╯│─┬┴┼├┤►◄✓╌▁▂▃▄▅▆▇█", "++++|-+++++><*-..::||##")


class State(StrEnum):
    """Whether a part of the drawing is there; the values are styles of `rich`."""

    ABSENT = "bright_black"
    COMING = "yellow"
    THERE = "green"
    GONE = "red"


@dataclass(slots=True)
class Flow:
    """The packets of one direction, as they were counted from time to time."""

    counts: deque[tuple[float, int]] = field(
        default_factory=lambda: deque(maxlen=_HISTORY)
    )

    def note(self, now: float, packets: int) -> None:
        """Note how many there have been; `now` is in seconds."""
        self.counts.append((now, packets))

    def text(self) -> str:
        """Return how many there have been, and a bar for the rate of each interval."""
        if not self.counts:
            return ""
        rates = [
            max(after - before, 0) / max(end - start, 0.001)
            for (start, before), (end, after) in pairwise(self.counts)
        ]
        top = max(rates, default=0) or 1
        # The smallest bar is for a packet, not for none.
        bars = "".join(
            _BARS[max(round(8 * rate / top), 1) if rate else 0] for rate in rates
        )
        return f"{self.counts[-1][1]:,} packets {bars}"


@dataclass(slots=True)
class Scene:
    """What a drawing shows now."""

    states: dict[str, State] = field(default_factory=dict)
    flows: dict[str, Flow] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)

    def style(self, part: str) -> str:
        """Return the style of a part."""
        return str(self.states.get(part, State.ABSENT))

    def flow(self, name: str) -> str:
        """Return the packets of a direction as text."""
        return self.flows[name].text() if name in self.flows else ""

    def lines(self) -> list[Line]:
        """Return the drawing: each line is a list of texts with their styles."""
        raise NotImplementedError

    def plain(self) -> str:
        """Return the drawing without styles."""
        return "\n".join(
            "".join(text for text, _ in line).rstrip() for line in self.lines()
        )


class PairScene(Scene):
    """The master and the slave, and the daemon between them."""

    def lines(self) -> list[Line]:
        """Return the drawing."""
        how = f"{self.facts['bind']}, {self.facts['data_plane']}"
        boxes = zip(
            _box("master VM", ("Linux, as it is", "virtio-net eth0", "10.77.0.1"), 21),
            _box("hypervisor", ("vhostpci-host:", "moves no packets", ""), 20),
            _box("slave VM", ("vhostpci-guest", how, "TAP vp0, 10.77.0.2"), 24),
            strict=True,
        )
        drawn = [self._boxes(number, texts) for number, texts in enumerate(boxes)]
        return [*drawn, *self._wire()]

    def _boxes(self, number: int, texts: tuple[str, str, str]) -> Line:
        """Return a line through the three boxes."""
        master, daemon, slave = (self.style(at) for at in ("master", "daemon", "slave"))
        agent = self.style("agent")
        joint = "╌╌╌╌" if number == 3 else "    "
        # What the agent has done is in the slave's box, which is there before.
        inner = agent if "│" in texts[2] else slave
        return [
            ("  ", ""),
            (texts[0], master),
            (joint, master),
            (texts[1], daemon),
            (joint, agent),
            (texts[2][:1], slave),
            (texts[2][1:-1], inner),
            (texts[2][-1:], slave),
        ]

    def _wire(self) -> list[Line]:
        """Return the way of the packets, below the boxes."""
        link, left = self.style("link"), " " * 12
        # A confined device has part of the master's memory, which is told here.
        way = f" {self.facts.get('shared', 'from memory to memory')} ".center(49, "─")
        return [
            [(f"{left}│{' ' * 49}│", link)],
            [(f"{left}╰{way}╯", link)],
            *([(f"{left}  {arrow} {self.flow(name)}", link)] for name, arrow in ARROWS),
        ]


class SwitchScene(Scene):
    """The switch VM, and a line for each master that has been there."""

    def lines(self) -> list[Line]:
        """Return the drawing."""
        how = f"TAPs, {self.facts['bind']}, {self.facts['data_plane']}"
        masters = [part for part in self.states if len(part) == 1]
        drawn: list[Line] = [
            [
                ("  master VMs".ljust(22), ""),
                ("vhostpci-host".ljust(28), self.style("daemon")),
                ("switch VM", self.style("switch")),
            ],
            [(" " * 50, ""), (how, self.style("agent"))],
        ]
        bridge = "bridge br0"
        for name in masters:
            drawn.append(self._card(name, f"TAP {name} ─┤ {bridge}"))
            bridge = ""
        return drawn

    def _card(self, name: str, tap: str) -> Line:
        """Return a master's line."""
        style = self.style(name)
        if self.states[name] is State.GONE:
            return [(f"  {name}  killed; the switch's card is unplugged", style)]
        there = self.states[name] is State.THERE
        wire = f"── {self.flow(name)} ".ljust(34, "─")[:34]
        return [
            (f"  {name}  virtio-net ", style),
            (wire, style),
            (f" {tap}", self.style("agent") if there else style),
        ]


def _box(title: str, texts: Sequence[str], width: int) -> list[str]:
    """Return a box with a title above it; each line has `width` columns."""
    inner = width - 4
    lines = [f"│ {text:<{inner}.{inner}} │" for text in texts]
    return [
        f" {title:<{width - 1}}",
        "╭" + "─" * (width - 2) + "╮",
        *lines,
        "╰" + "─" * (width - 2) + "╯",
    ]


def to_ascii(text: str) -> str:
    """Return a drawing for a terminal or a log that has no other characters."""
    return text.translate(_ASCII)
