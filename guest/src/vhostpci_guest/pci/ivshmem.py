# SPDX-License-Identifier: Apache-2.0
"""A bound ivshmem device, whichever driver it is bound to: window, vectors, doorbells.

A device shows one window.  Window 0 is the slave's own device and has the metadata;
further windows are further devices (attach mode).
"""

import select
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

from vhostpci_shared.barriers import Barriers, installed_barriers

from ..dataplane.mapping import Mapping
from ..interfaces import Doorbell, Ties, Window, WindowFile

MAX_DOORBELL = 2**16 - 1


class Registers:
    """BAR 0 (QEMU, "Device Specification for Inter-VM shared memory device").

    Args:
        mapping: of BAR 0.
        barriers: this machine's; tests have others.
    """

    SIZE = 256
    IV_POSITION = 8
    DOORBELL = 12

    def __init__(self, mapping: Mapping, barriers: Barriers | None = None) -> None:
        self._address = mapping.address
        # CPython moves an "I" with one memcpy of four bytes, which is one store.
        self._words = mapping.view.cast("I")
        self._barriers = installed_barriers() if barriers is None else barriers

    @property
    def iv_position(self) -> int:
        """The device's own ID among its peers."""
        return self._words[self.IV_POSITION // 4]

    def doorbell(self, peer: int, vector: int) -> Doorbell:
        """Return the address and the value of the store that signals a peer's vector.

        Raises:
            ValueError: the peer or the vector does not fit its 16 bits.
        """
        if not (0 <= peer <= MAX_DOORBELL and 0 <= vector <= MAX_DOORBELL):
            raise ValueError(f"no such doorbell: peer {peer}, vector {vector}")
        return Doorbell(self._address + self.DOORBELL, peer, vector)

    def ring(self, peer: int, vector: int) -> None:
        """Signal `vector` of `peer`."""
        # Order: what the signal is about, in ordinary memory, before this register.
        self._barriers.barrier_full()
        self._words[self.DOORBELL // 4] = self.doorbell(peer, vector).value

    def release(self) -> None:
        """Release the view of the mapping, so that the mapping can be closed."""
        self._words.release()


@dataclass(frozen=True, slots=True)
class MappedWindow:
    """BAR 2, mapped, and what another process can map: see `Window`."""

    mapping: Mapping
    file: WindowFile | None = None
    no_file: str = ""


class Place(Protocol):
    """The PCI function that was bound, as the kernel shows it."""

    address: str
    going: bool
    """Whether it is being unplugged, so that its old driver is not bound again."""


class PciBound:
    """A PCI device that we hold; one such class for all bindings.

    Args:
        place: the function in sysfs.
        binding: the name of the binding.
        registers: BAR 0.
        bar: BAR 2, the window.
        vector_count: size of its MSI-X table.
        vectors: an eventfd for each vector, or none: polling.
        request: a descriptor that is readable when the kernel asks for the device;
            None if the binding has none.
        ties: lets the kernel ring doorbells; None if the binding has no way.
        undo: gives the device back; ours to close.
    """

    def __init__(
        self,
        *,
        place: Place,
        binding: str,
        registers: Mapping,
        bar: MappedWindow,
        vector_count: int,
        vectors: Sequence[int],
        undo: ExitStack,
        request: int | None = None,
        ties: Ties | None = None,
    ) -> None:
        self.name = place.address
        self.binding = binding
        self.vector_count = vector_count
        self.settled = True
        self._place = place
        self._mappings = (registers, bar.mapping)
        self._vectors = tuple(vectors)
        self._request = request
        self._ties = ties
        self._undo = undo
        self._registers = Registers(registers)
        # The last callback runs first: a mapping cannot be closed while a view of it
        # exists, and the binding has put the mapping's close before this.
        undo.callback(self._registers.release)
        self._claim = ExitStack()
        # Read once: QEMU has the number from the server before the function appears,
        # so the register never changes.
        self.window = Window(
            self._registers.iv_position,
            bar.mapping.address,
            bar.mapping.view,
            self.name,
            bar.file,
            bar.no_file,
        )

    @property
    def lost(self) -> bool:
        """Whether it was unplugged, or the kernel waits until we close it."""
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

    def doorbell(self, peer: int, vector: int) -> Doorbell:
        """Return a peer's doorbell; QEMU ignores it if the peer is gone."""
        return replace(self._registers.doorbell(peer, vector), ties=self._ties)

    def ring(self, peer: int, vector: int) -> None:
        """Ring a peer's doorbell."""
        self._registers.ring(peer, vector)

    def adopt(self, claim: ExitStack) -> None:
        """Keep the claim on the device until it is closed."""
        self._claim = claim

    def close(self) -> None:
        """Unmap it, and bind the driver of before, unless it is being unplugged."""
        self._place.going = self._place.going or self.lost
        # The claim last: until the old driver is bound again no other agent may
        # begin.
        with self._claim:
            self._undo.close()


def _readable(fd: int) -> bool:
    # poll() and not a read: a read would clear the request, and the next question
    # whether the device is lost would be answered with no.
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))
