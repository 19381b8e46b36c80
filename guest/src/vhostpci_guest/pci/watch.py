# SPDX-License-Identifier: Apache-2.0
"""All the ivshmem devices of this machine, as they come and go.

Theory of operation.  Each device that is there has a `_Place`.  Its IVPosition is read
once, and says what it is: 0 is a device to serve, any other a window, for whichever
link wants it.  A place is worked off in steps, each of which may fail for now, since
another has the device, or the kernel is not done with it::

    unknown ---- IVPosition is read ----> known ---- wanted, and bound ----> held
                                            ^                                 |
                                            +---- not wanted, or lost --------+

A device is bound only while it is wanted, so several agents share a machine.  What
is lost while a link uses it (unplugged, or wanted back by its driver) is not found
any more, but stays mapped until the link says that it has let go.  One that was taken
from the driver through which we had it is somebody's who wants it, and so left alone
until that driver has it again.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field

from vhostpci_shared import metadata as md

from ..errors import Unusable
from ..interfaces import Device, Window, Windows
from .kernel import System
from .sysfs_device import PciDevice, is_ivshmem
from .uevents import Events, Overrun

log = logging.getLogger(__name__)

SOON = 0.05
"""Seconds until the first of further attempts; then twice as many, up to `RETRY`."""
PATIENCE = 1.0
"""Seconds in which a new device may fail without a word."""
RETRY = 5.0
"""Seconds between two looks at a device that cannot be had."""


@dataclass(eq=False)
class _Place:
    """One ivshmem device that is there, whether we have it or not."""

    pci: PciDevice
    came: float
    identity: int
    number: int | None = None
    """Its IVPosition, once it is known."""
    device: Device | None = None
    """The device, while we hold it."""
    driver: str | None = None
    """The driver through which we have it, or had it last."""
    taken: bool = False
    """Whether it was taken from that driver."""
    due: float = 0.0
    pause: float = SOON
    refused: bool = False
    said: str = ""


@dataclass(eq=False)
class _Lost:
    """A window that is gone, and those who may still use it."""

    device: Device
    users: set["_Finder"] = field(default_factory=set)


class PciWatch:
    """A source of all PCI devices, or of a single one and its windows.

    Args:
        events: tells what comes and goes; it is ours to close.
        bind: binds a device if its IVPosition is in a set (None: any); returns both.
        only: address of the one to serve; None: all.
        system: where the kernel's files are.
        now: a clock that only grows, in seconds.
    """

    def __init__(
        self,
        events: Events,
        bind: Callable[[PciDevice, Set[int] | None], tuple[int, Device | None]],
        *,
        only: str | None = None,
        system: System | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._events = events
        self._bind = bind
        self._only = only
        self._system = system or System()
        self._now = now
        self._places: dict[str, _Place] = {}
        self._lost: list[_Lost] = []
        self._shown: dict[int, Window] = {}
        self._wants: dict[_Finder, Set[int]] = {}
        self._named: Set[int] = frozenset()
        self._twins: dict[int, list[str]] = {}
        self._scan()
        if not self._places:
            log.info("no ivshmem device yet: waiting for one to be plugged")

    # As a Source.

    @property
    def single(self) -> bool:
        """Whether there is one device only."""
        return self._only is not None

    def look(self) -> None:
        """See what came and went, and take one device that is wanted.

        One, as it may need a good part of a second in which no other is served.

        Raises:
            Unusable: the only device is gone, or cannot be had.
        """
        self._hear()
        for place in list(self._places.values()):
            if place.device is not None and place.device.lost:
                log.info("%s: is wanted back, or gone", place.pci.address)
                place.taken = place.driver is not None
                self._lose(place)
                # If it stays: its closing belongs to the object that it had.
                place.pci = PciDevice(place.pci.address, self._system)
        due = [place for place in self._places.values() if self._wanted(place)]
        first = min(due, key=self._order, default=None)
        if first is not None and self._now() >= first.due:
            self._try(first)
        self._find_twins()
        if self._only is not None and self._only not in self._places:
            raise Unusable(f"{self._only} is gone, or was taken from its driver")

    def devices(self) -> Iterable[Device]:
        """Return the devices to serve that we hold."""
        return [
            place.device
            for place in self._places.values()
            if place.device is not None and self._is_device(place)
        ]

    def windows(self, device: Device) -> Windows:
        """Return what finds windows for one of the devices."""
        return _Finder(self)

    def fds(self) -> Iterator[int]:
        """Return the uevents' descriptor, and those that tell of a loss."""
        yield self._events.fileno()
        for place in self._places.values():
            if place.device is not None:
                yield from place.device.alarms()

    @property
    def interval(self) -> float | None:
        """Seconds until the next attempt, if there is one to make."""
        due = [place.due for place in self._places.values() if self._wanted(place)]
        return max(0.0, min(due) - self._now()) if due else None

    def refuse(self, device: Device) -> None:
        """Leave a device alone until it goes."""
        for place in self._places.values():
            if place.device is device:
                place.device, place.refused = None, True

    def close(self) -> None:
        """Give back all windows."""
        for lost in self._lost:
            lost.device.close()
        for place in self._places.values():
            if place.device is not None and not self._is_device(place):
                place.device.close()
        self._lost, self._places = [], {}
        self._events.close()

    # What comes and goes.

    def _scan(self) -> None:
        """Find out by ourselves what is there."""
        present = set(self._events.addresses())
        for address in self._places.keys() - present:
            self._go(address)
        for address in sorted(present):
            self._come(address)

    def _hear(self) -> None:
        try:
            events = self._events.read()
        except Overrun:
            log.info("too many devices came and went at once: looking for all of them")
            self._scan()
            return
        for event in events:
            if event.action == "add":
                self._come(event.address)
            elif event.action == "remove":
                self._go(event.address)
            elif place := self._places.get(event.address):
                # Its driver may have let it go.  What we do to it ourselves is
                # heard here, too: so not at once.
                place.due = min(place.due, self._now() + PATIENCE)

    def _come(self, address: str) -> None:
        """Take note of a device, unless it is the one that we know."""
        pci = PciDevice(address, self._system)
        place = self._places.get(address)
        if place is not None and place.identity == _identity(pci):
            return
        self._go(address)
        if is_ivshmem(pci):
            log.debug("%s: has come", address)
            self._places[address] = _Place(pci, self._now(), _identity(pci))

    def _go(self, address: str) -> None:
        place = self._places.pop(address, None)
        if place is not None:
            log.debug("%s: has gone", address)
            place.pci.going = True
            self._lose(place)

    def _lose(self, place: _Place) -> None:
        """Show a device no more.  One that is served is closed by who took it."""
        if place.pci.address == self._only:
            self._places.pop(self._only, None)
        place.due = self._now() + RETRY
        if self._is_device(place):
            place.device = None
        else:
            self._let_go(place)

    def _let_go(self, place: _Place) -> None:
        """Close a window, now or when all who may use it have let go of it."""
        device, place.device = place.device, None
        if device is None or place.number is None:
            return
        self._shown.pop(place.number, None)
        users = {user for user, wants in self._wants.items() if place.number in wants}
        if users:
            self._lost.append(_Lost(device, users))
        else:
            device.close()

    # Taking.

    def _is_device(self, place: _Place) -> bool:
        """Whether it is one to serve."""
        if self._only is not None:
            return place.pci.address == self._only
        return place.number == md.SLAVE_ID

    def _wanted(self, place: _Place) -> bool:
        """Whether there is something to do for it."""
        if place.device is not None or place.refused:
            return False
        if self._is_device(place):
            return True
        if place.number is None:
            return self._only is None or bool(self._lacking)
        return place.number in self._named and place.number not in self._twins

    @property
    def _lacking(self) -> Set[int]:
        """Windows that are wanted, and are none of the devices that we know."""
        known = {place.number for place in self._places.values()}
        return frozenset(self._named - known)

    def _keep(self, place: _Place) -> Set[int] | None:
        """Return the IVPositions with which a device is to be bound; None: any."""
        if place.pci.address == self._only:
            return None
        if place.number is not None:
            return frozenset((place.number,))
        served = frozenset((md.SLAVE_ID,)) if self._only is None else frozenset()
        return served | self._lacking

    def _order(self, place: _Place) -> tuple[bool, float]:
        return place.pci.address != self._only, place.due

    def _try(self, place: _Place) -> None:
        """Take a step with a device, or put it off."""
        try:
            if not place.pci.complete:
                raise Unusable(f"{place.pci.address} has no memory; see dmesg")
            self._respect(place)
            number, place.device = self._bind(place.pci, self._keep(place))
            if place.pci.address != self._only:
                place.number = number
            if place.device is not None:
                place.driver = place.pci.driver
                if not self._is_device(place) and place.number is not None:
                    self._shown[place.number] = place.device.window
        except (Unusable, OSError) as why:
            if place.pci.address == self._only:
                raise
            self._put_off(place, str(why))
        else:
            place.pause, place.said = SOON, ""

    def _respect(self, place: _Place) -> None:
        """Keep off a device that somebody took from the driver that we had it by.

        Raises:
            Unusable: it has not been given back to that one.
        """
        here, driver = place.pci.address, place.pci.driver
        if place.taken and driver != place.driver:
            raise Unusable(
                f"{here} was taken from {place.driver} (its driver now: "
                f"{driver or 'none'}); to give it back: "
                f"echo {here} > /sys/bus/pci/drivers/{place.driver}/bind"
            )
        place.taken = False

    def _put_off(self, place: _Place, why: str) -> None:
        now = self._now()
        place.due = now + place.pause
        place.pause = min(2 * place.pause, RETRY)
        if now - place.came >= PATIENCE and why != place.said:
            log.warning("%s; left alone for now", why)
            place.said = why

    def _find_twins(self) -> None:
        """Refuse windows with one number: nobody knows which is meant."""
        numbers = Counter(place.number for place in self._places.values())
        before, self._twins = self._twins, {}
        for number, count in numbers.items():
            if number is not None and number >= md.FIRST_WINDOW and count > 1:
                twins = [p for p in self._places.values() if p.number == number]
                self._twins[number] = [place.pci.address for place in twins]
                for place in twins:
                    self._let_go(place)
        for number in self._twins.keys() - before.keys():
            log.warning(
                "%s have IVPosition %d all of them: none is used",
                ", ".join(self._twins[number]),
                number,
            )

    # For those who want windows.

    def find(self, number: int) -> Window | None:
        """Return the window with this ID, if we hold it."""
        return self._shown.get(number)

    def want(self, user: "_Finder", numbers: Set[int]) -> None:
        """Have these windows for a user, and no others; it uses no others."""
        self._wants.pop(user, None)
        if numbers:
            self._wants[user] = frozenset(numbers)
        self._named = frozenset().union(*self._wants.values())
        for lost in list(self._lost):
            lost.users.discard(user)
            if not lost.users:
                self._lost.remove(lost)
                lost.device.close()
        for place in self._places.values():
            if not self._is_device(place) and place.number not in self._named:
                self._let_go(place)


class _Finder:
    """The windows of one link; each has its own, to say what it wants."""

    def __init__(self, watch: PciWatch) -> None:
        self._watch = watch

    def find(self, number: int) -> Window | None:
        """Return the window with this ID, if it is there."""
        return self._watch.find(number)

    def want(self, numbers: Set[int]) -> None:
        """Have these windows from now on, as far as they come, and no others."""
        self._watch.want(self, numbers)


def _identity(pci: PciDevice) -> int:
    """Return what tells a device from one that was at its address before."""
    try:
        return pci.path.stat().st_ino
    except OSError:
        return 0
