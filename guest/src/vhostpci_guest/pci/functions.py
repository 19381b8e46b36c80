# SPDX-License-Identifier: Apache-2.0
"""The ivshmem functions that are plugged, and what the watch knows of each.

Only the agent's loop uses this module; the binder's thread gets a function's
`PciDevice`, and reads no other part of it.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from vhostpci_shared import metadata as md

from ..errors import Unusable
from ..interfaces import Device
from .kernel import System
from .search import is_ivshmem
from .sysfs_device import PciDevice
from .uevents import Events, Overrun

log = logging.getLogger(__name__)

SOON = 0.05
"""Seconds until the first further attempt; the pause doubles up to `RETRY`."""
PATIENCE = 1.0
"""Seconds in which a function that was just plugged may fail without a log line."""
RETRY = 5.0
"""Seconds between two attempts to bind a function that another holds."""


@dataclass(eq=False)
class Function:
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
    """Whether an administrator has unbound that driver, and not bound it again."""
    due: float = 0.0
    pause: float = SOON
    refused: bool = False
    logged: str = ""
    """The failure that was logged last."""

    def check_bindable(self) -> None:
        """Refuse what must not be bound now.

        Raises:
            Unusable: its BARs are not set up; or an administrator has unbound its
                driver.
        """
        here, driver = self.pci.address, self.pci.driver
        if not self.pci.complete:
            raise Unusable(f"{here} has no memory; see dmesg", code="G071")
        if self.unbound and driver != self.driver:
            raise Unusable(
                f"{here} was taken from {self.driver} (its driver now: "
                f"{driver or 'none'}); to give it back: "
                f"echo {here} > /sys/bus/pci/drivers/{self.driver}/bind",
                code="G072",
            )
        self.unbound = False

    def hold(self, device: Device) -> None:
        """Note that we hold it."""
        self.device = device
        # Read now: before the bind, another driver or none was bound to it.
        self.driver = self.pci.driver

    def lose(self, system: System) -> None:
        """Note that its memory was lost, or that an administrator has unbound it."""
        # A function that was bound without a driver was not taken by an administrator:
        # its memory was lost, so it may be bound again.
        self.unbound = self.driver is not None
        # A new object: `going` of the old one is set when the device is closed, and
        # does not hold for a function that stays plugged.
        self.pci = PciDevice(self.pci.address, system)

    def note_success(self) -> None:
        """Forget the failures before: the next one is retried soon, and is logged."""
        self.pause, self.logged = SOON, ""

    def put_off(self, now: float, why: Exception) -> None:
        """Try it again after a pause, which is longer after each failure."""
        self.due = now + self.pause
        self.pause = min(2 * self.pause, RETRY)
        # The kernel announces a function before it has set up its BARs, so a failure
        # right after it was plugged says nothing.
        if now - self.appeared >= PATIENCE and str(why) != self.logged:
            log.warning("%s; left alone for now", why)
            self.logged = str(why)


class FunctionTable:
    """The functions that are plugged, by their PCI address; it follows the uevents.

    Args:
        events: says which PCI functions are plugged and unplugged; ours to close.
        system: where the kernel's files are.
        now: a monotonic clock, in seconds.
        unplugged: called with each function that is unplugged.
    """

    def __init__(
        self,
        events: Events,
        system: System,
        now: Callable[[], float],
        unplugged: Callable[[Function], None],
    ) -> None:
        self._events = events
        self._system = system
        self._now = now
        self._unplugged = unplugged
        self._functions: dict[str, Function] = {}

    def __iter__(self) -> Iterator[Function]:
        # A copy: the loop that uses it may remove functions.
        return iter(list(self._functions.values()))

    def __contains__(self, address: object) -> bool:
        return address in self._functions

    def has(self, function: Function) -> bool:
        """Whether this very function is plugged, and no other at its address."""
        return self._functions.get(function.pci.address) is function

    def fileno(self) -> int:
        """Return the descriptor that is readable when there are uevents."""
        return self._events.fileno()

    def scan(self) -> None:
        """Compare the functions that we know with those that are plugged."""
        present = set(self._events.addresses())
        for address in self._functions.keys() - present:
            self._on_remove(address)
        # In the order of the addresses, so that the TAPs' numbers are the same each
        # time the machine boots.
        for address in sorted(present):
            self._on_add(address)

    def read_uevents(self) -> None:
        """Note what was plugged, unplugged, bound and unbound."""
        try:
            events = self._events.read()
        except Overrun:
            log.info("the kernel dropped uevents: looking for all PCI devices again")
            self.scan()
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

    def remove(self, address: str) -> None:
        """Forget a function, although it may still be plugged."""
        self._functions.pop(address, None)

    def close(self) -> None:
        """Forget all functions, and stop following the uevents."""
        self._functions = {}
        self._events.close()

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
            self._functions[address] = Function(pci, self._now(), _identity(pci))

    def _on_remove(self, address: str) -> None:
        function = self._functions.pop(address, None)
        if function is not None:
            log.debug("%s: unplugged", address)
            # Also read by the binder, if it works on this function: then nothing is
            # written to what may be plugged at this address next.
            function.pci.going = True
            self._unplugged(function)


def find_duplicates(functions: Iterable[Function]) -> dict[int, list[Function]]:
    """Return the windows whose IVPosition more than one function has."""
    found = defaultdict(list)
    for function in functions:
        # Below FIRST_WINDOW it is a device to serve, of which a slave may have several.
        if function.position is not None and function.position >= md.FIRST_WINDOW:
            found[function.position].append(function)
    return {position: same for position, same in found.items() if len(same) > 1}


def _identity(pci: PciDevice) -> int:
    """Return the inode of a function's directory in sysfs, 0 if it was unplugged.

    Two functions that are plugged at one address, one after the other, differ in it.
    """
    try:
        return pci.path.stat().st_ino
    except OSError:
        return 0
