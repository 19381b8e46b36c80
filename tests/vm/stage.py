# SPDX-License-Identifier: Apache-2.0
"""What a demo shows while it runs: its steps, and a drawing that fills in.

On a terminal each step scrolls away above the drawing, which stays at the bottom.
Without one, as in a log, there are the steps, and the drawing once at the end.
"""

import io
import logging
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from tests.vm.scene import WIDTH, Flow, Scene, State, to_ascii
from tests.vm.show import Progress

LOOK = 1.0
"""Seconds between two looks at the packets: each costs the daemon some time."""

_WEB_FONT = re.compile(r"@font-face {.*?}\s*", re.DOTALL)
"""What would have a browser download a font."""

Counts = Mapping[str, int]
"""Packets so far, by the name of a flow in the scene."""


class Stage(Progress):
    """The steps and the drawing of a demo."""

    def __init__(self, scene: Scene, console: Console | None = None) -> None:
        super().__init__()
        self._console = console or Console(highlight=False)
        self._scene = scene
        self._count: Callable[[], Counts] = dict
        self._looked = 0.0
        self._step = ""
        self._printed: list[Text] = []
        wide = self._console.width > WIDTH
        self._live = (
            Live(
                console=self._console,
                get_renderable=self._frame,
                refresh_per_second=4,
            )
            if self._console.is_terminal and wide
            else None
        )

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()

    def rest(self) -> None:
        """Draw no more; the last drawing stays."""
        if self._live and self._live.is_started:
            self._step = ""
            self._live.stop()

    def __call__(self, text: str, why: str = "") -> None:
        """Note that a step begins."""
        self._step = text
        self._look()  # without a terminal nothing else does
        self.log(text)
        if why:
            self._print(Text(f"          {why}", style="dim"))

    def log(self, text: str) -> None:
        """Print a line above the drawing, with the time."""
        self._print(Text(f"[{self.seconds():5.1f} s] {text}"))

    def note(self, text: str) -> None:
        """Print a line that belongs to the present step."""
        self._print(Text(f"          {text}"))

    def _print(self, line: Text) -> None:
        self._console.print(line)
        self._printed.append(line)

    def picture(self, results: str) -> str:
        """Return all that the demo has shown as an SVG picture.

        Args:
            results: what was printed at the end.
        """
        console = Console(file=io.StringIO(), record=True, width=WIDTH + 14)
        lines = [Text.assemble(*line) for line in self._scene.lines()]
        for line in (*self._printed, Text(), *lines, Text(), Text(results)):
            console.print(line)
        svg = console.export_svg(title="make demo")
        return f"{_WEB_FONT.sub('', svg)}\n"

    def set(self, state: State, *parts: str) -> None:
        """Draw parts in another state."""
        for part in parts:
            self._scene.states[part] = state

    def follow(self, count: Callable[[], Counts]) -> None:
        """Show these packets from now on; `count` may raise OSError."""
        self._count = count

    def drawing(self) -> str:
        """Return the drawing as it is now, as plain text."""
        text = self._scene.plain()
        encoding = (sys.stdout.encoding or "").lower()
        return text if encoding.startswith("utf") else to_ascii(text)

    @property
    def is_live(self) -> bool:
        """Whether the drawing is on the terminal."""
        return self._live is not None

    def _frame(self) -> Group:
        self._look()
        lines = [Text.assemble(*line) for line in self._scene.lines()]
        return Group(Text(), *lines, Text(f"\n{self._now()}", style="bold"))

    def _now(self) -> str:
        return f"  {self.seconds():5.1f} s  {self._step}" if self._step else ""

    def _look(self) -> None:
        """Count the packets again, if it is time."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked = now
        try:
            counts = self._count()
        except OSError:
            return  # the daemon is not there yet, or has ended
        for name, packets in counts.items():
            self._scene.flows.setdefault(name, Flow()).note(now, packets)


class LogLines(logging.Handler):
    """Prints what is logged above a stage's drawing."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        self._stage.note(record.getMessage())
