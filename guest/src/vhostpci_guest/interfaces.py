# SPDX-License-Identifier: Apache-2.0
"""Protocols and types that the agent's layers share: devices, windows, sources."""

from collections import deque
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from typing import Protocol


class Tie(Protocol):
    """A doorbell that the kernel rings whenever an eventfd is signalled."""

    def close(self) -> None:
        """Untie them; the device's `close` does that, too."""


class Ties(Protocol):
    """Lets the kernel ring a device's doorbells, which takes no thread."""

    def tie(self, eventfd: int, peer: int, vector: int) -> Tie | None:
        """Let signals to an eventfd ring a doorbell; None if the kernel refuses.

        The kernel reads a tied eventfd, so nothing else can wait for it.
        """


@dataclass(frozen=True, slots=True)
class Doorbell:
    """The doorbell of one vector of a peer, rung by a store to the doorbell register.

    One 32-bit store of `value` at `host_addr`, where the register is mapped, rings it.
    """

    host_addr: int
    peer: int
    vector: int
    ties: Ties | None = field(default=None, compare=False, repr=False)
    """Lets the kernel ring it; None: the binding has nothing in the kernel for that."""

    @property
    def value(self) -> int:
        """The value to store: peer in the upper 16 bits, vector in the lower."""
        return self.peer << 16 | self.vector


@dataclass(frozen=True, slots=True)
class Eventfd:
    """A peer's doorbell as an eventfd, or as a socket: a write of 1 rings it."""

    fd: int


Call = Doorbell | Eventfd
"""How to interrupt a peer: what vhost-user calls the call eventfd."""


def nothing() -> None:
    """Do nothing: what is called where there is nothing to do."""


@dataclass(frozen=True, slots=True, eq=False)
class WindowFile:
    """The file behind a window, which another process can map.

    It is equal only to itself: a window that is mapped again is other memory, even if
    it is at the same address.
    """

    fd: int
    """Stays the device's, which keeps it open while the window is mapped."""
    offset: int = 0
    """Where in the file the window begins, in bytes."""
    holders: deque[int] = field(default_factory=lambda: deque(maxlen=16))
    """IDs of the last processes that were given a copy, and may have it mapped."""
    give: Callable[[], None] = nothing
    """To be called before another process, or the kernel, works on the window."""


@dataclass(frozen=True, slots=True)
class Window:
    """A window that this process has mapped."""

    id: int
    """The window's number: the IVPosition of its ivshmem function."""
    address: int
    """Where this process has mapped it."""
    view: memoryview
    device: str
    """PCI address of the ivshmem function, or path of the window's socket."""
    file: WindowFile | None = None
    """What another process can map; None: there is nothing to give to one."""
    no_file: str = ""
    """Why `file` is None, for people."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self.view)


class Device(Protocol):
    """An ivshmem function or a daemon's socket, which the agent has until `close`."""

    @property
    def name(self) -> str:
        """Its PCI address, or the path of its socket."""

    @property
    def binding(self) -> str:
        """The binding: ``kmod``, ``vfio``, ``uio``, ``sysfs`` or ``socket``."""

    @property
    def window(self) -> Window:
        """The window of this device itself: its BAR 2, or the file from its socket."""

    @property
    def vector_count(self) -> int:
        """Number of vectors that the device has now."""

    @property
    def settled(self) -> bool:
        """Whether the number of vectors is final."""
        # An ivshmem server sends a socket's vectors one by one.

    @property
    def lost(self) -> bool:
        """Whether the device was removed or taken back, and must be closed."""

    def alarms(self) -> Iterable[int]:
        """Return descriptors that are readable once the device is lost."""

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
    """Finds the further windows of one device."""

    def find(self, number: int) -> Window | None:
        """Return the window with this number; None if it is not there (yet)."""

    def want(self, numbers: Set[int]) -> None:
        """Set which windows to map when they appear; release all others.

        After this call the caller must not touch any other window, and of these only
        those that `find` returns.
        """


class Source(Protocol):
    """Finds devices, and takes them back."""

    def look(self) -> None:
        """Read the events that are pending, and update the devices and windows.

        Raises:
            Unusable: no device will ever come.
        """

    def devices(self) -> Iterable[Device]:
        """Return the devices that exist; the caller ends its use with `give_back`."""

    def windows(self, device: Device) -> Windows:
        """Return the finder of further windows for one of the devices."""

    def fds(self) -> Iterable[int]:
        """Return descriptors that are readable when `look` has something to do."""

    @property
    def interval(self) -> float | None:
        """Seconds until `look` must be called at the latest; None for no limit."""

    @property
    def single(self) -> bool:
        """Whether there is only ever one device.

        If so, the agent ends when that device fails, and keeps the TAP while the device
        is away.
        """

    def refuse(self, device: Device) -> None:
        """Never offer this device again; the caller gives it back next."""

    def give_back(self, device: Device) -> None:
        """Close a device, at once or within a second or two.

        The caller must not touch the device after this call.
        """

    def close(self) -> None:
        """Release all devices that the agent does not use; finish what has begun."""
