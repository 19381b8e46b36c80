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
A function that an administrator has unbound from its driver while the agent held it is
left alone until that driver is bound to it again.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Set
from concurrent.futures import Future
from functools import partial

from vhostpci_shared import metadata as md

from ..errors import Unusable
from ..interfaces import Device, Window, Windows
from .binder import Binder
from .functions import RETRY, Function, FunctionTable, find_duplicates
from .kernel import System
from .sysfs_device import PciDevice
from .uevents import Events
from .windows import WindowTable

log = logging.getLogger(__name__)

Bind = Callable[[PciDevice, Set[int] | None], tuple[int, Device | None]]
"""Binds a function if its IVPosition is in a set (None: any); returns both."""


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
        self._bind = bind
        self._only = only
        self._binder = binder or Binder()
        self._system = system or System()
        self._now = now
        self._functions = FunctionTable(events, self._system, now, self._release)
        self._binding: Function | None = None
        """The function that the binder works on."""
        self._windows = WindowTable(self.give_back)
        self._duplicates: dict[int, list[Function]] = {}
        """The windows whose IVPosition is not theirs alone."""
        self._closing = False
        self._not_restored: list[BaseException] = []
        self._functions.scan()
        if not list(self._functions):
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
        self._functions.read_uevents()
        self._drop_lost()
        # After the losses: what is bound now is shown to the agent at least once, and
        # so has an owner who gives it back.
        self._binder.deliver()
        # After the results, which have new IVPositions, and before the next attempt: a
        # window that another function claims to be is not bound.
        self._find_duplicates()
        self._bind_next()
        if self._only is not None and self._only not in self._functions:
            raise Unusable(
                f"{self._only} is gone, or was taken from its driver", code="G095"
            )

    def devices(self) -> Iterable[Device]:
        """Return the devices to serve that we hold."""
        return [
            function.device
            for function in self._functions
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
        yield self._functions.fileno()
        yield self._binder.fileno()
        for function in self._functions:
            if function.device is not None:
                yield from function.device.alarms()

    @property
    def interval(self) -> float | None:
        """Seconds until the next attempt, if there is one to make."""
        if self._binding is not None:
            return None  # the binder's descriptor says when the next may begin
        due = [
            function.due for function in self._functions if self._is_wanted(function)
        ]
        return max(0.0, min(due) - self._now()) if due else None

    def refuse(self, device: Device) -> None:
        """Leave a device alone until it is unplugged."""
        for function in self._functions:
            if function.device is device:
                # Not released: the caller gives the device back next.
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
        # Before the binder: what is being bound now then finds no function, and is
        # given back.
        self._functions.close()
        self._binder.close()
        for why in self._not_restored:
            raise why

    # Unplugged, lost.

    def _drop_lost(self) -> None:
        """Release devices that were unplugged, or unbound by an administrator."""
        for function in self._functions:
            if function.device is not None and function.device.lost:
                log.info(
                    "%s: its driver was unbound, or it is gone", function.pci.address
                )
                self._release(function)
                function.lose(self._system)

    def _release(self, function: Function) -> None:
        """Release a function that can no longer be used.

        The agent closes a device that it served, since `devices` no longer has it.
        """
        if function.pci.address == self._only:
            self._functions.remove(self._only)
        function.due = self._now() + RETRY
        if self._is_served(function):
            function.device = None
        else:
            self._release_window(function)

    def _release_window(self, function: Function) -> None:
        if function.device is not None and function.position is not None:
            function.device = None
            self._windows.remove(function.position)

    # Binding.

    def _is_served(self, function: Function) -> bool:
        """Whether it is a device to serve, and no window."""
        if self._only is not None:
            return function.pci.address == self._only
        return function.position == md.SLAVE_ID

    def _is_wanted(self, function: Function) -> bool:
        """Whether it is to be bound, or its IVPosition to be read."""
        if function.device is not None or function.refused:
            return False
        if self._is_served(function):
            return True
        # It may be any window that is missing, or a device to serve.
        if function.position is None:
            return self._only is None or bool(self._missing_windows)
        return (
            function.position in self._windows.wanted
            and function.position not in self._duplicates
        )

    @property
    def _missing_windows(self) -> Set[int]:
        """Windows that are wanted, and are none of the functions that we know."""
        known = {function.position for function in self._functions}
        return frozenset(self._windows.wanted - known)

    def _keep(self, function: Function) -> Set[int] | None:
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
        wanted = [f for f in self._functions if self._is_wanted(f)]
        function = min(wanted, key=self._order, default=None)
        if function is None or self._now() < function.due:
            return
        try:
            function.check_bindable()
        except Unusable as why:
            self._put_off(function, why)
            return
        self._binding = function
        self._binder.submit(
            f"binding {function.pci.address}",
            partial(self._bind, function.pci, self._keep(function)),
            partial(self._bound, function),
        )

    def _order(self, function: Function) -> tuple[bool, float]:
        """Sort the only device to serve before all windows, then by time."""
        return function.pci.address != self._only, function.due

    def _bound(
        self, function: Function, outcome: Future[tuple[int, Device | None]]
    ) -> None:
        """Keep what the binder has bound if it is still wanted."""
        self._binding = None
        here = self._functions.has(function)
        try:
            position, device = outcome.result()
        except (Unusable, OSError) as why:
            if here:  # else the function is unplugged, which explains the failure
                self._put_off(function, why)
            return
        function.note_success()
        if function.pci.address != self._only:
            function.position = position
        if device is None:
            return
        # While the thread worked the function may have been unplugged, the window be
        # named no more, or another with this IVPosition have appeared.
        if here and self._is_wanted(function):
            function.hold(device)
            if not self._is_served(function):
                self._windows.add(position, device)
        else:
            self.give_back(device)

    def _put_off(self, function: Function, why: Exception) -> None:
        """Try a function again after a pause.

        Raises:
            Unusable, OSError: `why`, if it is the only device to serve.
        """
        if function.pci.address == self._only:
            raise why
        function.put_off(self._now(), why)

    def _find_duplicates(self) -> None:
        """Refuse windows that have one IVPosition: it is unknown which is meant."""
        before, self._duplicates = self._duplicates, find_duplicates(self._functions)
        for position, same in self._duplicates.items():
            for function in same:
                self._release_window(function)
            if position not in before:
                log.warning(
                    "%s have IVPosition %d all of them: none is used",
                    ", ".join(function.pci.address for function in same),
                    position,
                )

    # For the links, which want windows.

    def find(self, number: int) -> Window | None:
        """Return the window with this ID, if we hold it."""
        return self._windows.find(number)

    def want(self, user: "_LinkWindows", numbers: Set[int]) -> None:
        """Hold these windows for a link; it has stopped using all others."""
        # First: it sets `wanted`, by which the functions below are released.
        self._windows.want(user, numbers)
        for function in self._functions:
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
