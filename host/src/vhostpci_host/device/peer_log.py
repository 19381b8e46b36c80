# SPDX-License-Identifier: Apache-2.0
"""Log lines that another process causes: a few of each kind, then only their number.

A front-end that reconnects each second, or a hostile one that sends thousands of
refused requests a second, must not fill the disk with what the daemon says of it.
"""

import logging
from dataclasses import dataclass

from ..interfaces import Loop, Timer

log = logging.getLogger(__name__)

WINDOW = 60.0
"""Seconds after which a kind of line may be logged again."""
LOOK = 1.0
"""Seconds from one look to the next at what was left out, while there is any."""
BURST = 6
"""Lines of one kind within a window.  A kind names the process that causes it."""
BURST_ALL = 120
"""Lines of all kinds within a window: a process can fork, and each child is another."""
MOST = 64
"""Kinds that are remembered at one time."""


@dataclass(slots=True)
class _Kind:
    """What was logged of one kind since its window began."""

    since: float
    lines: int = 0
    left_out: int = 0
    text: str = ""
    level: int = logging.INFO


class PeerLog:
    """The log of one device, for lines that other processes cause.

    Args:
        name: the device's, which begins each line.
        loop: tells the time, and calls back when there is something to report.
    """

    def __init__(self, name: str, loop: Loop) -> None:
        self._name = name
        self._loop = loop
        self._all = _Kind(loop.time())
        self._kinds: dict[str, _Kind] = {}
        self._timer: Timer | None = None
        """Runs while there is something to report."""

    def info(self, text: str, kind: str) -> None:
        """Log an event of this kind."""
        self._say(logging.INFO, text, self._kind(kind))

    def warn(self, text: str, kind: str) -> None:
        """Log a warning of this kind."""
        self._say(logging.WARNING, text, self._kind(kind))

    def warn_once(self, text: str) -> None:
        """Log a warning, unless it is the last one of its kind.

        Its kind is the text up to the first colon, which names the process.
        """
        kind = self._kind(text.partition(":")[0])
        if text == kind.text:
            self._leave_out(kind, text)
        else:
            self._say(logging.WARNING, text, kind)

    def _kind(self, name: str) -> _Kind:
        kind = self._kinds.pop(name, None) or _Kind(self._loop.time())
        if len(self._kinds) >= MOST:
            # Report it later, with all the others that were forgotten in this window.
            oldest = self._kinds.pop(next(iter(self._kinds)))
            self._all.left_out += oldest.left_out
            self._all.text = oldest.text
        self._kinds[name] = kind  # as the newest
        self._renew(kind)
        self._renew(self._all)
        return kind

    def _say(self, level: int, text: str, kind: _Kind) -> None:
        kind.level = level
        if kind.lines >= BURST or self._all.lines >= BURST_ALL:
            self._leave_out(kind, text)
            return
        kind.lines += 1
        self._all.lines += 1
        kind.text = text
        log.log(level, "%s: %s", self._name, text)

    def _leave_out(self, kind: _Kind, text: str) -> None:
        kind.left_out += 1
        kind.text = text
        log.debug("%s: %s", self._name, text)
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK, self._look)

    def _look(self) -> None:
        """Report what was left out in windows that are over."""
        self._timer = None
        kinds = (self._all, *self._kinds.values())
        for kind in kinds:
            self._renew(kind)
        if any(kind.left_out for kind in kinds):
            self._timer = self._loop.call_later(LOOK, self._look)

    def _renew(self, kind: _Kind) -> None:
        """Begin a new window if the last one is over."""
        now = self._loop.time()
        if now - kind.since >= WINDOW:
            self._report(kind)
            kind.since, kind.lines, kind.left_out = now, 0, 0

    def _report(self, kind: _Kind) -> None:
        if kind.left_out:
            log.log(
                kind.level,
                "%s: %d more lines like this one were left out: %s",
                self._name,
                kind.left_out,
                kind.text,
            )

    def close(self) -> None:
        """Report what was left out until now."""
        if self._timer is not None:
            self._timer.cancel()
        for kind in (self._all, *self._kinds.values()):
            self._report(kind)
        self._kinds.clear()
