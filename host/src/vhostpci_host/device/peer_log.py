# SPDX-License-Identifier: Apache-2.0
"""Log lines that another process causes: a few of each kind, then only their number.

A front-end that reconnects each second, or a hostile one that sends thousands of
refused requests a second, must not fill the disk with what the daemon says of it.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)

WINDOW = 60.0
"""Seconds after which a kind of line may be logged again."""
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
        now: a monotonic clock, in seconds.
    """

    def __init__(self, name: str, now: Callable[[], float]) -> None:
        self._name = name
        self._now = now
        self._all = _Kind(now())
        self._kinds: dict[str, _Kind] = {}

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
        kind = self._kinds.pop(name, None) or _Kind(self._now())
        if len(self._kinds) >= MOST:
            # Report it later, with all the others that were forgotten in this window.
            oldest = self._kinds.pop(next(iter(self._kinds)))
            self._all.left_out += oldest.left_out
            self._all.text = oldest.text
        self._kinds[name] = kind  # as the newest
        return kind

    def _say(self, level: int, text: str, kind: _Kind) -> None:
        self._renew(kind)
        self._renew(self._all)
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

    def tick(self) -> None:
        """Report what was left out: call it from time to time."""
        for kind in (self._all, *self._kinds.values()):
            self._renew(kind)

    def _renew(self, kind: _Kind) -> None:
        """Begin a new window if the last one is over."""
        if self._now() - kind.since >= WINDOW:
            self._report(kind)
            kind.since, kind.lines, kind.left_out = self._now(), 0, 0

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
        for kind in (self._all, *self._kinds.values()):
            self._report(kind)
        self._kinds.clear()
