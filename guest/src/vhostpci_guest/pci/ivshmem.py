# SPDX-License-Identifier: Apache-2.0
"""What every way to an ivshmem device comes to: a window, vectors, doorbells.

A device shows one window.  Window 0 is the slave's own device and carries the
metadata; further windows are further devices (attach mode).
"""

import ctypes
import mmap
import os
import select
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Protocol

from ..dataplane.native import Guard

MAX_DOORBELL = 2**16 - 1


class Unusable(Exception):
    """This machine, as it is, cannot do what was asked; the text says what to change.

    Neither our fault nor a peer's: one line for the user, exit status 1.
    """


@dataclass(frozen=True, slots=True)
class Mmio:
    """A doorbell that is rung by one 32-bit store of `value` at `address`."""

    address: int
    peer: int
    vector: int

    @property
    def value(self) -> int:
        """What to store."""
        return self.peer << 16 | self.vector


@dataclass(frozen=True, slots=True)
class Eventfd:
    """A doorbell that is an eventfd; whoever asked for it closes it."""

    fd: int


Doorbell = Mmio | Eventfd


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

    def doorbell(self, peer: int, vector: int) -> Doorbell | None:
        """Return a peer's doorbell; None if that peer is not there (yet)."""

    def ring(self, peer: int, vector: int) -> None:
        """Ring a peer's doorbell; nothing happens if the peer is not there."""

    def close(self) -> None:
        """Give the device back as it was found."""


class Mapping:
    """Memory of a device in this process, shared and writable.

    It is guarded: if the file shrinks, or the device is unplugged, there are zeros
    instead, and `lost` is set.

    Args:
        fd: what to map; it may be closed afterwards.
        size: bytes.
        offset: where in `fd` to start, a multiple of the page size.
        skip: bytes of the first page that are somebody else's.

    Raises:
        OSError: the kernel does not map it.
    """

    def __init__(self, fd: int, size: int, *, offset: int = 0, skip: int = 0) -> None:
        self._mmap = mmap.mmap(fd, size, offset=offset)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._mmap))
        self.address = base + skip
        self.view = memoryview(self._mmap)
        if skip:
            # The kernel maps the page, Python shows no more than the file's size.
            here = (ctypes.c_char * size).from_address(self.address)
            self.view = memoryview(here).cast("B")
        try:
            self._guard = Guard(base, skip + size)
        except BaseException:
            self.view.release()
            self._mmap.close()
            raise

    def fileno(self) -> int:
        """Return a descriptor that is readable when the memory is lost."""
        return self._guard.fileno()

    @property
    def lost(self) -> bool:
        """Whether the memory is gone, and there are zeros in its place."""
        return self._guard.lost

    def close(self) -> None:
        """Unmap it.

        Raises:
            BufferError: somebody still has a part of `view`.
        """
        self.view.release()
        self._mmap.close()
        self._guard.close()  # not before: who still has a part may use it


class Registers:
    """BAR 0 (QEMU, "Device Specification for Inter-VM shared memory device")."""

    SIZE = 256
    IV_POSITION = 8
    DOORBELL = 12

    def __init__(self, mapping: Mapping) -> None:
        self._address = mapping.address
        # CPython moves an "I" with one memcpy of four bytes, which is one store.
        self._words = mapping.view.cast("I")

    @property
    def iv_position(self) -> int:
        """The device's own ID among its peers."""
        return self._words[self.IV_POSITION // 4]

    def doorbell(self, peer: int, vector: int) -> Mmio:
        """Return where and what to store to signal `vector` of `peer`.

        Raises:
            ValueError: either does not fit the register's 16 bits for it.
        """
        if not (0 <= peer <= MAX_DOORBELL and 0 <= vector <= MAX_DOORBELL):
            raise ValueError(f"no such doorbell: peer {peer}, vector {vector}")
        return Mmio(self._address + self.DOORBELL, peer, vector)

    def ring(self, peer: int, vector: int) -> None:
        """Signal `vector` of `peer`."""
        self._words[self.DOORBELL // 4] = self.doorbell(peer, vector).value

    def release(self) -> None:
        """Let go of the mapping, so that it can be closed."""
        self._words.release()


class Place(Protocol):
    """Where a PCI device is, as the kernel shows it."""

    address: str
    going: bool
    """Whether the device goes, so that nothing is to be put back as it was."""


class PciBound:
    """A PCI device in our hands, by whichever driver.

    Args:
        place: where it is.
        binding: how we have it.
        registers: BAR 0.
        bar: BAR 2.
        vector_count: size of its MSI-X table.
        vectors: an eventfd for each vector, or none: polling.
        request: an eventfd by which the kernel wants the device back, if it would.
        undo: what gives the device back; it is ours from here on.
    """

    def __init__(
        self,
        *,
        place: Place,
        binding: str,
        registers: Mapping,
        bar: Mapping,
        vector_count: int,
        vectors: Sequence[int],
        undo: ExitStack,
        request: int | None = None,
    ) -> None:
        self.name = place.address
        self.binding = binding
        self.vector_count = vector_count
        self.settled = True
        self._place = place
        self._mappings = (registers, bar)
        self._vectors = tuple(vectors)
        self._request = request
        self._undo = undo
        self._registers = Registers(registers)
        undo.callback(self._registers.release)
        self.window = Window(
            self._registers.iv_position, bar.address, bar.view, self.name
        )

    @property
    def lost(self) -> bool:
        """Whether it was unplugged, or the kernel waits for us to let it go."""
        if any(mapping.lost for mapping in self._mappings):
            return True
        return self._request is not None and _readable(self._request)

    def alarms(self) -> Iterable[int]:
        """Return descriptors that are readable once it is lost."""
        if self._request is not None:
            yield self._request
        yield from (mapping.fileno() for mapping in self._mappings)

    def vector(self, index: int) -> int | None:
        """Return the eventfd of a vector; None where there are no interrupts."""
        return self._vectors[index] if index < len(self._vectors) else None

    def doorbell(self, peer: int, vector: int) -> Mmio:
        """Return a peer's doorbell; QEMU ignores one of a peer that is not there."""
        return self._registers.doorbell(peer, vector)

    def ring(self, peer: int, vector: int) -> None:
        """Ring a peer's doorbell."""
        self._registers.ring(peer, vector)

    def close(self) -> None:
        """Unmap it, and bind what was bound before, unless it goes."""
        self._place.going = self._place.going or self.lost
        self._undo.close()


def new_eventfd() -> int:
    """Return a new eventfd that never blocks."""
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def _readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def drain(fd: int) -> bool:
    """Take what an eventfd holds; return whether it held anything."""
    with suppress(BlockingIOError):
        os.eventfd_read(fd)
        return True
    return False


def signal(fd: int) -> None:
    """Add one to an eventfd; one that is full needs no more."""
    with suppress(BlockingIOError):
        os.eventfd_write(fd, 1)
