# SPDX-License-Identifier: Apache-2.0
"""All the ivshmem functions of this machine, as they are plugged and unplugged.

Theory of operation.  A *function* is one ivshmem device of the PCI bus.  Its
IVPosition says what it is: 0 is a device to serve, any other is a window, for the link
that wants it.  The watch looks at one function after the other, and the binder's
thread does the slow part: under one claim it reads the IVPosition, and binds the
function if it is to be served or wanted now.  Each attempt may fail for a while,
since another agent has the function, or the kernel is not done with it::

    unknown ---- IVPosition is read ----> known ---- wanted, and bound ----> held
       |                                    ^                                 |
       +-------- wanted, and bound          +---- not wanted, or lost --------+
                 in the same attempt

A function is bound only while it is wanted, so several agents can share a machine.
A window that is lost stays mapped until its links have stopped using it (windows.py).
A function whose driver was unbound under us has been claimed by the administrator, and
is left alone until that driver is bound to it again.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from vhostpci_shared import metadata as md

from ..errors import Unusable
from ..interfaces import Device, Window, Windows
from .binder import Binder
from .kernel import System
from .search import is_ivshmem
from .sysfs_device import PciDevice
from .uevents import Events, Overrun
from .windows import WindowTable

log = logging.getLogger(__name__)

SOON = 0.05
"""Seconds until the first further attempt; the pause doubles up to `RETRY`."""
PATIENCE = 1.0
"""Seconds in which a function that was just plugged may fail without a log line."""
RETRY = 5.0
"""Seconds between two attempts to bind a function that another holds."""

Bind = Callable[[PciDevice, Set[int] | None], tuple[int, Device | None]]
"""Binds a function if its IVPosition is in a set (None: any); returns both."""


@dataclass(eq=False)
class _Function:
    """One ivshmem function that is plugged, whether we hold it or not."""

    pci: PciDevice
    appeared: float
    identity: int
    position: int | None = None
    """Its IVPosition, once it is known."""
    device: Device | None = None
    """The device, while we hold it."""
    driver: str | None = None
    """The driver that it was bound to while we held it."""
    unbound: bool = False
    """Whether another has unbound that driver, and not bound it again."""
    due: float = 0.0
    pause: float = SOON
    refused: bool = False
    logged: str = ""
    """The failure that was logged last."""


class PciWatch:
    """A source of all PCI devices, or of a single one and its windows.

    Args:
        events: says which PCI functions are plugged and unplugged; ours to close.
        bind: binds a function; runs on the binder's thread.
        only: address of the one to serve; None: all.
        binder: the thread to bind on; ours to close.
        system: where the kernel's files are.
        now: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        events: Events,
        bind: Bind,
        *,
        only: str | None = None,
        binder: Binder | None = None,
        system: System | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._events = events
        self._bind = bind
        self._only = only
        self._binder = binder or Binder()
        self._system = system or System()
        self._now = now
        self._functions: dict[str, _Function] = {}
        self._binding: _Function | None = None
        """The function that the binder works on."""
        self._windows = WindowTable(self.give_back)
        self._duplicates: dict[int, list[str]] = {}
        """Addresses of the windows whose IVPosition is not theirs alone."""
        self._closing = False
        self._not_restored: list[BaseException] = []
        self._scan()
        if not self._functions:
            log.info("no ivshmem device yet: waiting for one to be plugged")

    # As a Source.

    @property
    def single(self) -> bool:
        """Whether there is one device only."""
        return self._only is not None

    def look(self) -> None:
        """See what was plugged, unplugged or bound, and bind what is wanted.

        Raises:
            Unusable: the only device is gone, or cannot be bound.
        """
        self._read_uevents()
        self._drop_lost()
        # After the losses: what is bound now is shown to the agent at least once, and
        # so has an owner who gives it back.
        self._binder.deliver()
        self._find_duplicates()
        self._bind_next()
        if self._only is not None and self._only not in self._functions:
            raise Unusable(f"{self._only} is gone, or was taken from its driver")

    def devices(self) -> Iterable[Device]:
        """Return the devices to serve that we hold."""
        return [
            function.device
            for function in self._functions.values()
            if function.device is not None and self._is_served(function)
        ]

    def windows(self, device: Device) -> Windows:
        """Return what finds windows for one of the devices."""
        return _LinkWindows(self)

    def fds(self) -> Iterator[int]:
        """Return the descriptors of uevents, of the binder, and of held devices.

        None is of a device that was given back: the thread closes those, perhaps
        while the loop polls.
        """
        yield self._events.fileno()
        yield self._binder.fileno()
        for function in self._functions.values():
            if function.device is not None:
                yield from function.device.alarms()

    @property
    def interval(self) -> float | None:
        """Seconds until the next attempt, if there is one to make."""
        if self._binding is not None:
            return None  # the binder's descriptor says when the next may begin
        due = [
            function.due
            for function in self._functions.values()
            if self._is_wanted(function)
        ]
        return max(0.0, min(due) - self._now()) if due else None

    def refuse(self, device: Device) -> None:
        """Leave a device alone until it is unplugged."""
        for function in self._functions.values():
            if function.device is device:
                function.device, function.refused = None, True

    def give_back(self, device: Device) -> None:
        """Close a device on the binder's thread."""
        self._binder.submit(
            f"giving {device.name} back", device.close, self._given_back
        )

    def _given_back(self, outcome: Future[None]) -> None:
        why = outcome.exception()
        if why is None:
            return
        if self._closing:
            # Raised at the end: the other devices are given back first.
            self._not_restored.append(why)
        elif self._only is not None or not isinstance(why, (Unusable, OSError)):
            raise why
        else:
            log.warning("a device is not as it was found: %s", why)

    def close(self) -> None:
        """Give back all windows, and wait until all devices are given back.

        Raises:
            Unusable, OSError: a device cannot be given back as it was found.
        """
        self._closing = True
        self._windows.close()
        # What is being bound now finds no function, and is given back.
        self._functions = {}
        try:
            self._binder.close()
        finally:
            self._events.close()
        for why in self._not_restored:
            raise why

    # Plugged, unplugged, lost.

    def _scan(self) -> None:
        """Compare the functions that we know with those that are plugged."""
        present = set(self._events.addresses())
        for address in self._functions.keys() - present:
            self._on_remove(address)
        for address in sorted(present):
            self._on_add(address)

    def _read_uevents(self) -> None:
        try:
            events = self._events.read()
        except Overrun:
            log.info("the kernel dropped uevents: looking for all PCI devices again")
            self._scan()
            return
        for event in events:
            if event.action == "add":
                self._on_add(event.address)
            elif event.action == "remove":
                self._on_remove(event.address)
            elif function := self._functions.get(event.address):
                # Its driver may have been unbound.  Not at once: our own binding
                # causes the same uevents.
                function.due = min(function.due, self._now() + PATIENCE)

    def _on_add(self, address: str) -> None:
        """Note a function, unless it is the one that we know at this address."""
        pci = PciDevice(address, self._system)
        function = self._functions.get(address)
        # A uevent that was sent before our scan is read after it.
        if function is not None and function.identity == _identity(pci):
            return
        self._on_remove(address)
        if is_ivshmem(pci):
            log.debug("%s: plugged", address)
            self._functions[address] = _Function(pci, self._now(), _identity(pci))

    def _on_remove(self, address: str) -> None:
        function = self._functions.pop(address, None)
        if function is not None:
            log.debug("%s: unplugged", address)
            # Also read by the binder, if it works on this function: then nothing is
            # written to what may be plugged at this address next.
            function.pci.going = True
            self._release(function)

    def _drop_lost(self) -> None:
        """Release what was unplugged, or whose driver was unbound, under us."""
        for function in list(self._functions.values()):
            if function.device is not None and function.device.lost:
                log.info(
                    "%s: its driver was unbound, or it is gone", function.pci.address
                )
                function.unbound = function.driver is not None
                self._release(function)
                # A new object: `going` of the old one is set when the device is
                # closed, and does not hold for a function that stays plugged.
                function.pci = PciDevice(function.pci.address, self._system)

    def _release(self, function: _Function) -> None:
        """Hold a function no longer.

        A device that is served is closed by the agent, which misses it in `devices`.
        """
        if function.pci.address == self._only:
            self._functions.pop(self._only, None)
        function.due = self._now() + RETRY
        if self._is_served(function):
            function.device = None
        else:
            self._release_window(function)

    def _release_window(self, function: _Function) -> None:
        if function.device is not None and function.position is not None:
            function.device = None
            self._windows.remove(function.position)

    # Binding.

    def _is_served(self, function: _Function) -> bool:
        """Whether it is a device to serve, and no window."""
        if self._only is not None:
            return function.pci.address == self._only
        return function.position == md.SLAVE_ID

    def _is_wanted(self, function: _Function) -> bool:
        """Whether it is to be bound, or its IVPosition to be read."""
        if function.device is not None or function.refused:
            return False
        if self._is_served(function):
            return True
        if function.position is None:
            return self._only is None or bool(self._missing_windows)
        return (
            function.position in self._windows.wanted
            and function.position not in self._duplicates
        )

    @property
    def _missing_windows(self) -> Set[int]:
        """Windows that are wanted, and are none of the functions that we know."""
        known = {function.position for function in self._functions.values()}
        return frozenset(self._windows.wanted - known)

    def _keep(self, function: _Function) -> Set[int] | None:
        """Return the IVPositions with which a function is to be bound; None: any."""
        if function.pci.address == self._only:
            return None
        if function.position is not None:
            return frozenset((function.position,))
        served = frozenset((md.SLAVE_ID,)) if self._only is None else frozenset()
        return served | self._missing_windows

    def _bind_next(self) -> None:
        """Start one attempt, if one is due.

        One at a time, so that what is wanted when it begins decides, and so that the
        end waits for one attempt at most.
        """
        if self._binding is not None:
            return
        wanted = [f for f in self._functions.values() if self._is_wanted(f)]
        function = min(wanted, key=self._order, default=None)
        if function is None or self._now() < function.due:
            return
        try:
            self._check_bindable(function)
        except Unusable as why:
            self._put_off(function, why)
            return
        self._binding = function
        self._binder.submit(
            f"binding {function.pci.address}",
            partial(self._bind, function.pci, self._keep(function)),
            partial(self._bound, function),
        )

    def _order(self, function: _Function) -> tuple[bool, float]:
        """Sort the only device to serve before all windows, then by time."""
        return function.pci.address != self._only, function.due

    def _check_bindable(self, function: _Function) -> None:
        """Refuse what must not be bound now.

        Raises:
            Unusable: its BARs are not set up; or its driver was unbound under us.
        """
        here, driver = function.pci.address, function.pci.driver
        if not function.pci.complete:
            raise Unusable(f"{here} has no memory; see dmesg")
        if function.unbound and driver != function.driver:
            raise Unusable(
                f"{here} was taken from {function.driver} (its driver now: "
                f"{driver or 'none'}); to give it back: "
                f"echo {here} > /sys/bus/pci/drivers/{function.driver}/bind"
            )
        function.unbound = False

    def _bound(
        self, function: _Function, outcome: Future[tuple[int, Device | None]]
    ) -> None:
        """Keep what the binder has bound if it is still wanted."""
        self._binding = None
        here = self._functions.get(function.pci.address) is function
        try:
            position, device = outcome.result()
        except (Unusable, OSError) as why:
            if here:  # else the function is unplugged, which explains the failure
                self._put_off(function, why)
            return
        function.pause, function.logged = SOON, ""
        if function.pci.address != self._only:
            function.position = position
        if device is None:
            return
        # While the thread worked the function may have been unplugged, the window be
        # named no more, or another with this IVPosition have appeared.
        if here and self._is_wanted(function):
            self._hold(function, device)
        else:
            self.give_back(device)

    def _hold(self, function: _Function, device: Device) -> None:
        function.device = device
        function.driver = function.pci.driver
        if not self._is_served(function) and function.position is not None:
            self._windows.add(function.position, device)

    def _put_off(self, function: _Function, why: Exception) -> None:
        """Try a function again after a pause.

        Raises:
            Unusable, OSError: `why`, if it is the only device to serve.
        """
        if function.pci.address == self._only:
            raise why
        now = self._now()
        function.due = now + function.pause
        function.pause = min(2 * function.pause, RETRY)
        # The kernel announces a function before it has set up its BARs, so a failure
        # right after it was plugged says nothing.
        if now - function.appeared >= PATIENCE and str(why) != function.logged:
            log.warning("%s; left alone for now", why)
            function.logged = str(why)

    def _find_duplicates(self) -> None:
        """Refuse windows that have one IVPosition: it is unknown which is meant."""
        positions = Counter(f.position for f in self._functions.values())
        before, self._duplicates = self._duplicates, {}
        for position, count in positions.items():
            if position is not None and position >= md.FIRST_WINDOW and count > 1:
                same = [f for f in self._functions.values() if f.position == position]
                self._duplicates[position] = [f.pci.address for f in same]
                for function in same:
                    self._release_window(function)
        for position in self._duplicates.keys() - before.keys():
            log.warning(
                "%s have IVPosition %d all of them: none is used",
                ", ".join(self._duplicates[position]),
                position,
            )

    # For the links, which want windows.

    def find(self, number: int) -> Window | None:
        """Return the window with this ID, if we hold it."""
        return self._windows.find(number)

    def want(self, user: "_LinkWindows", numbers: Set[int]) -> None:
        """Hold these windows for a link; it has stopped using all others."""
        self._windows.want(user, numbers)
        for function in self._functions.values():
            if (
                not self._is_served(function)
                and function.position not in self._windows.wanted
            ):
                self._release_window(function)


class _LinkWindows:
    """The windows of one link; each link has its own, to say what it wants."""

    def __init__(self, watch: PciWatch) -> None:
        self._watch = watch

    def find(self, number: int) -> Window | None:
        """Return the window with this ID, if it is there."""
        return self._watch.find(number)

    def want(self, numbers: Set[int]) -> None:
        """Hold these windows from now on, once they are plugged, and no others."""
        self._watch.want(self, numbers)


def _identity(pci: PciDevice) -> int:
    """Return the inode of a function's directory in sysfs, 0 if it is gone.

    Another function at the same address has another.
    """
    try:
        return pci.path.stat().st_ino
    except OSError:
        return 0
