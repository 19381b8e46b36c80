# SPDX-License-Identifier: Apache-2.0
"""How fast the windows read: whether this machine's processor may cache them.

Theory of operation.  sysfs and vfio-pci map a BAR uncached, and so does the kernel
where firmware says so of its addresses.  Whether that counts is the hypervisor's to
say: KVM on Intel ignores it, KVM on AMD does not, and then each load of a few bytes
takes as long as one of a device's register, and a packet's copy a hundred times as
long as it should.  Nothing in the guest tells which it is, so it is measured.

No figure is slow by itself: an emulated machine reads all its memory slowly.  So a
window is compared with memory of our own, by the same copy of the same length.  What
else runs on the machine can only make a copy slower, so of several the fastest
counts; and a window is called slow only if it was so at several ticks, one after the
other.  From then on, or once it was fast, it is not measured again.

Only a page is read that is there: reading a hole of the hypervisor's file fills it.
Of window 0 this is the one that the daemon writes, of another the first of the
master's memory.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from vhostpci_shared import metadata as md

from ..interfaces import Device, Window

log = logging.getLogger(__name__)

SLOW = 8
"""How many times slower than our own memory is slow.  What is cached is as fast, since
the first copy brings it near; uncached it is forty times slower and more."""
PIECE = 4096
"""Bytes that are copied: a millisecond, if it is one load for each."""
LOOKS = 3
"""Measurements that a window must be slow in before we say so."""
_ROUNDS = 8
_FEWEST_ROUNDS = 3
_ENOUGH = 4_000_000
"""Nanoseconds after which there are no further rounds."""

_MODULE = (
    "load the module uio_vhostpci and take --bind kmod, which maps it cached "
    "(docs/operations.md)"
)
_MENDS = {
    "kmod": "its BAR is likely below 4 GiB, where firmware lets nothing be cached: a "
    "window of 1 GiB or more is put above, as are all in a slave with such a port",
    "socket": "let the memory's file be on tmpfs or hugetlbfs",
}
"""What to do, by binding; else there is the module."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Bytes a second that a window reads, and memory of our own."""

    window: float
    own: float

    @property
    def slow(self) -> bool:
        """Whether the window looks uncached."""
        return self.own >= SLOW * self.window

    def best(self, other: "Speed") -> "Speed":
        """Return the faster of both measurements, each side by itself."""
        return Speed(max(self.window, other.window), max(self.own, other.own))

    def status(self) -> dict[str, float | bool]:
        """Return it as `vhostpci-guest status -j` prints it, in MB/s."""
        return {
            "mbps": round(self.window / 1e6, 1),
            "own_mbps": round(self.own / 1e6, 1),
            "slow": self.slow,
        }


def measure(
    piece: memoryview, now: Callable[[], int] = time.perf_counter_ns
) -> Speed | None:
    """Return how fast bytes read; None if there are none.

    Args:
        piece: what to read; as much again is read of our own memory.
        now: a clock that only grows, in nanoseconds.
    """
    if not piece:
        return None
    target, own = memoryview(bytearray(len(piece))), memoryview(bytearray(len(piece)))
    times = list(_times(target, own, piece, now))
    fastest = (max(1, min(side)) for side in zip(*times, strict=True))
    ours, its = (len(piece) * 1e9 / nanoseconds for nanoseconds in fastest)
    return Speed(window=its, own=ours)


def _times(
    target: memoryview, own: memoryview, piece: memoryview, now: Callable[[], int]
) -> Iterator[tuple[int, int]]:
    """Copy both a few times; the first round has the page faults."""
    start = now()
    for number in range(1, _ROUNDS + 1):
        before = now()
        target[:] = own
        between = now()
        target[:] = piece
        after = now()
        yield between - before, after - between
        if number >= _FEWEST_ROUNDS and after - start > _ENOUGH:
            return


def piece_of(window: Window) -> memoryview:
    """Return what may be read of a window: nothing, of one that is too small."""
    start = window.size - md.SIZE if window.id == md.SLAVE_ID else 0
    return window.view[start : start + PIECE] if start >= 0 else window.view[:0]


class Speeds:
    """How fast each window of a device is.

    Args:
        device: whose windows they are.
        measure: measures a piece of one.
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
        """Measure those that we are not sure of, and warn of those that are slow."""
        there = {number: found for number, found in windows.items() if found}
        self._known = {
            number: self._of(number, window) for number, window in there.items()
        }
        for number, known in self._known.items():
            if not known.sure:
                self._look(number, known)

    def _of(self, number: int, window: Window) -> "_Known":
        known = self._known.get(number)
        return known if known and known.window is window else _Known(window)

    def _look(self, number: int, known: "_Known") -> None:
        with piece_of(known.window) as view:
            speed = self._measure(view)
        known.take(speed)
        if known.sure and known.speed and known.speed.slow:
            log.warning("%s", self._warning(number, known.speed))

    def _warning(self, number: int, speed: Speed) -> str:
        device = self._device
        return (
            f"{device.name}: window {number} reads {speed.window / 1e6:.0f} MB/s, "
            f"this machine's own memory {speed.own / 1e6:.0f} MB/s: it looks "
            f"uncached (bound by {device.binding}), and each packet takes longer for "
            f"it; {_MENDS.get(device.binding, _MODULE)}"
        )

    def status(self, number: int) -> dict[str, float | bool] | None:
        """Return what is known of a window; None if that is nothing."""
        known = self._known.get(number)
        return known.speed.status() if known and known.speed else None


@dataclass(slots=True)
class _Known:
    """What is known of one window so far."""

    window: Window
    speed: Speed | None = None
    looks: int = 0

    @property
    def sure(self) -> bool:
        """Whether another measurement would tell nothing new."""
        return self.looks >= LOOKS

    def take(self, speed: Speed | None) -> None:
        """Add a measurement; one that is good, or impossible, is the last."""
        if speed and self.speed:
            speed = self.speed.best(speed)
        self.speed = speed
        self.looks = self.looks + 1 if speed and speed.slow else LOOKS
