# SPDX-License-Identifier: Apache-2.0
"""Measures how fast the windows read, and warns if the processor does not cache them.

sysfs and vfio-pci map a BAR uncached, and so does the kernel where firmware declares
the BAR's addresses uncached.  The hypervisor decides whether that has an effect: KVM on
Intel ignores it, KVM on AMD does not.  Where it has, each load of a few bytes takes as
long as a read of a device's register, and the copy of a packet takes a hundred times as
long.  The guest cannot ask which it is, so the agent measures.

An emulated machine reads all its memory slowly, so no rate is slow by itself.  The
agent compares a window with the memory of its process.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from vhostpci_shared import metadata as md

from ..interfaces import Device, Window

log = logging.getLogger(__name__)

# A cached window is as fast as our own memory, since the first copy brings it into the
# cache.  An uncached one is forty times slower and more.
SLOW = 8
"""A window is slow if our own memory is at least this many times faster."""
# Enough for the clock to resolve, and if the processor loads each byte apart (0.25 µs),
# a round of it holds up the event loop for a millisecond.
PIECE = 4096
"""Bytes that one round copies."""
LOOKS = 3
"""A window must be slow in this many measurements before the agent warns."""
_ROUNDS = 8
_FEWEST_ROUNDS = 3
_TIME_LIMIT = 4_000_000
"""Nanoseconds after which a measurement ends, once it has `_FEWEST_ROUNDS`."""

_MODULE = (
    "load the module uio_vhostpci and take --bind kmod, which maps it cached "
    "(docs/agent.md)"
)
_REMEDIES = {
    "kmod": "its BAR is likely below 4 GiB, where firmware lets nothing be cached: a "
    "window of 1 GiB or more is put above, as are all in a slave with such a port",
    "socket": "let the memory's file be on tmpfs or hugetlbfs",
}
"""What the user can do, by binding; for the other bindings it is `_MODULE`."""


@dataclass(frozen=True, slots=True)
class Speed:
    """The rates at which a window and our own memory read, in bytes per second."""

    window: float
    own: float

    @property
    def slow(self) -> bool:
        """Whether the window looks uncached."""
        return self.own >= SLOW * self.window

    def best(self, other: "Speed") -> "Speed":
        """Return the higher rate of two measurements, for the window and for us."""
        # Other load on the machine makes a copy slower, never faster.
        return Speed(max(self.window, other.window), max(self.own, other.own))

    def status(self) -> dict[str, float | bool]:
        """Return the rates as `vhostpci-guest status -j` prints them, in MB/s."""
        return {
            "mbps": round(self.window / 1e6, 1),
            "own_mbps": round(self.own / 1e6, 1),
            "slow": self.slow,
        }


def measure(
    piece: memoryview, now: Callable[[], int] = time.perf_counter_ns
) -> Speed | None:
    """Return how fast `piece` and our own memory read; None if `piece` is empty.

    Args:
        piece: a part of a window.
        now: a clock that only grows, in nanoseconds.
    """
    if not piece:
        return None
    target, own = memoryview(bytearray(len(piece))), memoryview(bytearray(len(piece)))
    times = list(_times(target, own, piece, now))
    # The fastest round: whatever else ran made the others slower.  At least 1, since
    # two readings of a coarse clock may be equal.
    fastest = (max(1, min(side)) for side in zip(*times, strict=True))
    ours, its = (len(piece) * 1e9 / nanoseconds for nanoseconds in fastest)
    return Speed(window=its, own=ours)


def _times(
    target: memoryview, own: memoryview, piece: memoryview, now: Callable[[], int]
) -> Iterator[tuple[int, int]]:
    """Copy our own memory and the piece by turns; give the time of each round."""
    # Three rounds at least: the first has the page faults, and fills the cache.
    start = now()
    for number in range(1, _ROUNDS + 1):
        before = now()
        target[:] = own
        between = now()
        target[:] = piece
        after = now()
        yield between - before, after - between
        if number >= _FEWEST_ROUNDS and after - start > _TIME_LIMIT:
            return


def piece_of(window: Window) -> memoryview:
    """Return the part of a window to measure; empty if the window is too small."""
    # A page that exists: a read of a hole in the hypervisor's file would fill the hole.
    # The daemon writes the metadata region of window 0.  In another window, page 0 is
    # the first page of a region of the master's memory.
    start = window.size - md.SIZE if window.id == md.SLAVE_ID else 0
    return window.view[start : start + PIECE] if start >= 0 else window.view[:0]


class Speeds:
    """Measures the windows of one device, and remembers the results.

    Args:
        device: the device that the windows belong to.
        measure: measures a part of a window.
    """

    def __init__(
        self,
        device: Device,
        measure: Callable[[memoryview], Speed | None] = measure,
    ) -> None:
        self._device = device
        self._measure = measure
        self._known: dict[int, _Known] = {}

    def look(self, windows: Mapping[int, Window | None]) -> None:
        """Measure each window whose speed is not certain yet; warn of slow ones."""
        there = {number: found for number, found in windows.items() if found}
        self._known = {
            number: self._of(number, window) for number, window in there.items()
        }
        for number, known in self._known.items():
            if not known.sure:
                self._look(number, known)

    def _of(self, number: int, window: Window) -> "_Known":
        # Another object under the same number is another mapping, maybe of another
        # kind.
        known = self._known.get(number)
        return known if known and known.window is window else _Known(window)

    def _look(self, number: int, known: "_Known") -> None:
        # "with": a slice that stays open would keep the window from being unmapped.
        with piece_of(known.window) as view:
            speed = self._measure(view)
        known.add(speed)
        if known.sure and known.speed and known.speed.slow:
            log.warning("%s", self._warning(number, known.speed))

    def _warning(self, number: int, speed: Speed) -> str:
        device = self._device
        return (
            f"{device.name}: window {number} reads {speed.window / 1e6:.0f} MB/s, "
            f"this machine's own memory {speed.own / 1e6:.0f} MB/s: it looks "
            f"uncached (bound by {device.binding}), and each packet takes longer for "
            f"it; {_REMEDIES.get(device.binding, _MODULE)}"
        )

    def status(self, number: int) -> dict[str, float | bool] | None:
        """Return a window's rates for the status; None if it was not measured."""
        known = self._known.get(number)
        return known.speed.status() if known and known.speed else None


@dataclass(slots=True)
class _Known:
    """The measurements of one window."""

    window: Window
    speed: Speed | None = None
    looks: int = 0

    @property
    def sure(self) -> bool:
        """Whether the window needs no further measurement."""
        return self.looks >= LOOKS

    def add(self, speed: Speed | None) -> None:
        """Add a measurement, or None if the window cannot be measured."""
        if speed and self.speed:
            speed = self.speed.best(speed)
        self.speed = speed
        # One fast measurement proves that the window is cached.  A slow one may be due
        # to other load, so it counts only if several follow each other.
        self.looks = self.looks + 1 if speed and speed.slow else LOOKS
