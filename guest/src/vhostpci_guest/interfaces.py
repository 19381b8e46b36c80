# SPDX-License-Identifier: Apache-2.0
"""What the agent's layers ask of each other: devices, windows, sources of both."""

from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Doorbell:
    """A peer's doorbell in the doorbell register of our ivshmem function.

    One 32-bit store of `value` at `host_addr`, where the register is mapped, rings it.
    """

    host_addr: int
    peer: int
    vector: int

    @property
    def value(self) -> int:
        """What to store: the register has the peer in its upper 16 bits."""
        return self.peer << 16 | self.vector


@dataclass(frozen=True, slots=True)
class Eventfd:
    """A peer's doorbell as an eventfd: a write of 1 rings it."""

    fd: int


Call = Doorbell | Eventfd
"""How to interrupt a peer: what vhost-user calls the call eventfd."""


@dataclass(frozen=True, slots=True)
class Window:
    """BAR 2: `id` is the device's IVPosition, `address` where this process has it.

    `device` is the name of what shows it: a PCI address, or the path of a socket.
    """

    id: int
    address: int
    view: memoryview
    device: str

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.view)


class Device(Protocol):
    """An ivshmem device that is ours until `close`."""

    @property
    def name(self) -> str:
        """Its PCI address, or the path of its socket."""

    @property
    def binding(self) -> str:
        """How we have it: ``vfio``, ``uio``, ``sysfs`` or ``socket``."""

    @property
    def window(self) -> Window:
        """What its BAR 2 shows."""

    @property
    def vector_count(self) -> int:
        """Vectors that the device has."""

    @property
    def settled(self) -> bool:
        """Whether no more vectors will come."""

    @property
    def lost(self) -> bool:
        """Whether it is gone, or wanted back: it is to be closed."""

    def alarms(self) -> Iterable[int]:
        """Return descriptors that are readable once it is lost."""

    def vector(self, index: int) -> int | None:
        """Return the eventfd of a vector; None where there are no interrupts."""

    def doorbell(self, peer: int, vector: int) -> Call | None:
        """Return a peer's doorbell; None if that peer is not there (yet).

        An `Eventfd` is a duplicate, which the caller must close.
        """

    def ring(self, peer: int, vector: int) -> None:
        """Ring a peer's doorbell; nothing happens if the peer is not there."""

    def close(self) -> None:
        """Give the device back as it was found."""


class Windows(Protocol):
    """Finds windows for one device."""

    def find(self, number: int) -> Window | None:
        """Return the window with this ID, if it is there."""

    def want(self, numbers: Set[int]) -> None:
        """Have these windows from now on, as far as they come, and no others.

        The caller uses none of the others any more, and none that is not found.
        """


class Source(Protocol):
    """Where devices come from."""

    def look(self) -> None:
        """See what has happened.

        Raises:
            Unusable: no device will ever come.
        """

    def devices(self) -> Iterable[Device]:
        """Return the devices that are there; who takes one calls `give_back`."""

    def windows(self, device: Device) -> Windows:
        """Return what finds further windows for one of the devices."""

    def fds(self) -> Iterable[int]:
        """Return the descriptors at which something happens."""

    @property
    def interval(self) -> float | None:
        """Seconds until the next look, if nothing happens before."""

    @property
    def single(self) -> bool:
        """Whether it has one device ever: if that one fails, all is over.

        Then its TAP stays while the device is away, too.
        """

    def refuse(self, device: Device) -> None:
        """Offer a device no more: it cannot be served, and is given back next."""

    def give_back(self, device: Device) -> None:
        """Close a device that was taken, now or soon: it may take a second or two.

        The caller must not touch the device after this call.
        """

    def close(self) -> None:
        """Give back all but the devices that the agent took; finish what is begun."""
