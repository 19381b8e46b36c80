# SPDX-License-Identifier: Apache-2.0
"""What `top` shows of devices and their rings, for the daemon and the agent alike."""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from .screen import Frame, run
from .terminal import Styled, Terminal, add_color
from .units import short, si

COUNTS = ("packets", "bytes", "drops", "kicks", "calls")
BAR = 10
"""Characters of the bar that shows how full a ring is."""
WIDE = 76
"""Columns from which on there is room for the bar."""
FASTEST = 0.2
"""Seconds between two looks; the agent writes its counts not more often."""


class Ring(NamedTuple):
    """One ring at one moment."""

    name: str
    size: int
    fill: int | None
    """Chains that its driver offers and that are not used; None: not known."""
    counts: Mapping[str, int | None]
    """By the names of `COUNTS`; None of what is not counted."""


class Device(NamedTuple):
    """One device at one moment."""

    name: str
    state: str
    about: str
    rings: tuple[Ring, ...] = ()
    key: str = ""
    """By what it is known again, if another device may have its name."""

    @property
    def same(self) -> tuple[str, str]:
        """What it has in common with the same device at another moment."""
        return self.key, self.name


class Sample(NamedTuple):
    """All devices at one moment."""

    at: float
    devices: tuple[Device, ...]
    problem: str = ""
    """Why some are missing."""


Look = Callable[[], Sequence[Device]]


class Top:
    """Makes the frames: each shows what has changed since the one before.

    Args:
        title: the program's name.
        look: returns the devices now; an error of `errors` is shown, once there was one
            look without.
        errors: what `look` raises if the other side is not there.
        now: a clock that only grows.
    """

    def __init__(
        self,
        title: str,
        look: Look,
        errors: tuple[type[Exception], ...],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = title
        self._look = look
        self._errors = errors
        self._now = now
        self._last = Sample(now(), tuple(look()))

    def frame(self, terminal: Terminal) -> list[str]:
        """Look again; return the lines to show."""
        before = self._last
        try:
            after = Sample(self._now(), tuple(self._look()))
        except self._errors as error:
            after = Sample(self._now(), (), str(error))
        self._last = after
        return lines(self._title, before, after, terminal)


def lines(title: str, before: Sample, after: Sample, terminal: Terminal) -> list[str]:
    """Return the lines for what has changed between two samples."""
    seconds = after.at - before.at
    count = len(after.devices)
    head = f"{title}: {count} device{'s' * (count != 1)}, over {seconds:.1f} s"
    found = terminal.wrapped(Styled(head, "head"))
    if after.problem:
        found += terminal.wrapped(Styled(after.problem, "bad"))
    earlier = {device.same: device for device in before.devices}
    for device in after.devices:
        found += _device(device, earlier.get(device.same), seconds, terminal)
    return found


_HEADER = ("RING", "PACKETS/s", "BIT/s", "FILL", "DROPS/s", "KICKS/s", "CALLS/s")


def _device(
    device: Device, before: Device | None, seconds: float, terminal: Terminal
) -> Iterator[str]:
    style = "good" if device.state in ("running", "ready") else "warn"
    words = [Styled(device.name, "name"), Styled(device.state, style)]
    head = "  ".join(map(terminal.paint, words))
    room = None if terminal.width is None else terminal.width
    if room is None or len(device.name + device.state + device.about) + 4 <= room:
        yield f"{head}  {terminal.paint(Styled(device.about, 'dim'))}".rstrip()
    else:
        yield head
        yield from terminal.wrapped(Styled(device.about, "dim"), indent=2)
    earlier = {ring.name: ring for ring in before.rings} if before else {}
    rows = [
        _row(ring, earlier.get(ring.name), seconds, terminal) for ring in device.rings
    ]
    if rows:
        yield from terminal.table(rows, _HEADER, indent=2, right=(1, 2, 4, 5, 6))


def _row(
    ring: Ring, before: Ring | None, seconds: float, terminal: Terminal
) -> list[str]:
    rates = {name: _rate(name, ring, before, seconds) for name in COUNTS}
    bits = rates["bytes"]
    drops = rates["drops"]
    return [
        ring.name,
        _text(rates["packets"]),
        "-" if bits is None else si(8 * bits, "").replace(" ", ""),
        _fill(ring, terminal),
        Styled(_text(drops), "bad" if drops else "dim"),
        _text(rates["kicks"]),
        _text(rates["calls"]),
    ]


def _rate(name: str, ring: Ring, before: Ring | None, seconds: float) -> float | None:
    """Return how fast a count grows; None if that is not known."""
    now, then = ring.counts.get(name), before and before.counts.get(name)
    if now is None or then is None or seconds <= 0:
        return None
    # Another agent begins at 0: what came before is not known.
    return (now - then) / seconds if now >= then else None


def _text(rate: float | None) -> str:
    return "-" if rate is None else short(round(rate))


def _fill(ring: Ring, terminal: Terminal) -> str:
    if ring.fill is None:
        return "-"
    number = str(ring.fill)
    if not ring.size or (terminal.width is not None and terminal.width < WIDE):
        return number
    full, empty = ("█", "░") if terminal.unicode else ("#", ".")
    part = min(round(BAR * ring.fill / ring.size), BAR)
    return f"{full * part}{empty * (BAR - part)} {number}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `top`."""
    parser.add_argument(
        "-d",
        "--interval",
        type=_interval,
        default=1.0,
        metavar="SECONDS",
        help=f"from one look to the next, {FASTEST:g} at least (default: 1)",
    )
    parser.add_argument(
        "-n",
        type=_number,
        metavar="N",
        help="print N looks one below the other, and end",
    )
    parser.add_argument(
        "--once", action="store_const", dest="n", const=1, help="the same as -n 1"
    )
    add_color(parser)
    parser.epilog = (
        "q or Ctrl-C ends it.  Without a terminal the looks are printed one below the "
        "other."
    )


def _interval(text: str) -> float:
    value = float(text)
    if not FASTEST <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text}: from {FASTEST:g} to 3600 seconds")
    return value


def _number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: 1 or more")
    return value


def show(top: Top, arguments: argparse.Namespace) -> None:
    """Show frames until the user has enough."""
    frame: Frame = top.frame
    run(frame, arguments.interval, arguments.n, arguments.color)
