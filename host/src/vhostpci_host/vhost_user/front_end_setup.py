# SPDX-License-Identifier: Apache-2.0
"""What one front-end has set up so far: features, memory and rings.

The handlers of its requests change it, and the device reads it.  It begins empty when
the front-end connects, and is closed when the front-end disconnects.
"""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

from vhostpci_shared import packed, virtio
from vhostpci_shared.position import Position
from vhostpci_shared.vhost_user import Payload, ProtocolFeature
from vhostpci_shared.virtio import Feature
from vhostpci_shared.wire import ProtocolError

from ..fds import Fd
from ..memory.regions import MemoryMap, Windows
from . import positions
from .vring import NOT_ALL_SHARED, Areas, Unservable, Vring


@dataclass(frozen=True, slots=True)
class Quiesce:
    """The rings that the agent must stop touching before the request goes on."""

    rings: frozenset[int]


Wait = Generator[Quiesce, None, None]
Steps = Generator[Quiesce, None, Payload | None]
"""A handler that may have to wait; it returns the reply, None without one."""


class FrontEndSetup:
    """The features, the memory and the rings of one front-end.

    Args:
        queue_pairs: how many the device has.
        windows: the windows in which the front-end's memory may lie.
        position: reads what an agent has left of packed ring `index`.
        origin: returns the origin of ring `index`; what the agent has left belongs to
            its present base only if it names that.
        offer: returns the features to offer.
        confined: whether the device is.
        outside: what to do about a ring that lies outside of the memory.
    """

    def __init__(
        self,
        queue_pairs: int,
        windows: Windows,
        position: Callable[[int], Position],
        origin: Callable[[int], int],
        offer: Callable[[], Feature],
        *,
        confined: bool = False,
        outside: str = NOT_ALL_SHARED,
    ) -> None:
        self.queue_pairs = queue_pairs
        self.confined = confined
        self.offer = offer
        self.windows = windows
        self._position = position
        self._origin = origin
        self.features = Feature(0)
        self.protocol_features = ProtocolFeature(0)
        self.memory = MemoryMap()
        self.memory_problem = ""
        """Why the last request about its memory was refused; empty if it was not."""
        self.mtu = 0
        self.rings = [Vring(outside) for _ in range(2 * queue_pairs)]
        self.disabled: set[int] = set()
        """Rings that were disabled and not quiesced since."""
        self.backend_channel: Fd | None = None

    def runs(self, index: int) -> bool:
        """Whether ring `index` is ready and enabled."""
        # Not one ring of a card that has another which cannot be served: its driver
        # could send and not receive, or the other way.
        return self.rings[index].ready and self.enabled(index) and not self.unservable

    @property
    def driver_problem(self) -> str:
        """Why no ring of the driver can be served; empty if that is not so."""
        if Feature.F_ACCESS_PLATFORM not in self.features:
            return ""
        return (
            "the master's driver gives addresses of an IOMMU, which we do not have: "
            "start a confined master without one (intel-iommu, smmuv3, virtio-iommu)"
        )

    @property
    def problem(self) -> str:
        """Why this front-end cannot be served; of its rings they themselves say it."""
        return self.memory_problem or self.driver_problem

    @property
    def unservable(self) -> bool:
        """Whether the rings of the driver cannot be served as they are."""
        if self.driver_problem:
            return any(ring.described for ring in self.rings)
        return any(ring.problem for ring in self.rings)

    @property
    def has_to_go(self) -> bool:
        """Whether a front-end must not stay, and see that its memory was refused."""
        # A QEMU whose memory we refuse serves the rings itself, with the link up, until
        # it is disconnected.  It can reach all of its guest's memory, and the slave of
        # a confined master writes in these rings.  While they run it has begun with us.
        started = any(ring.kicked for ring in self.rings)
        return self.confined and bool(self.memory_problem) and not started

    @property
    def memoryless(self) -> bool:
        """Whether a ring lacks only the memory, of which the front-end showed none.

        QEMU shows no region that has no file, and says nothing about it.
        """
        # Not if there was one before: QEMU changes a layout region by region.
        shown = self.memory.regions or self._was_ready
        return not shown and any(ring.described for ring in self.rings)

    @property
    def useful(self) -> bool:
        """Whether the front-end has come so far that its rings can be served."""
        return self._was_ready and not self.unservable

    @property
    def _was_ready(self) -> bool:
        return any(ring.was_ready for ring in self.rings)

    def enabled(self, index: int) -> bool:
        """Whether ring `index` is enabled."""
        # QEMU sends SET_VRING_ENABLE even before SET_FEATURES, so what it said counts
        # first.  A front-end that did not acknowledge F_PROTOCOL_FEATURES has no such
        # request, and its rings are enabled from the start.
        said = self.rings[index].enable
        return (
            Feature.F_PROTOCOL_FEATURES not in self.features if said is None else said
        )

    def enable(self, index: int, *, on: bool) -> None:
        """Enable ring `index`, or disable it; `finish_disabling` must follow later."""
        if on:
            self.disabled.discard(index)
        elif self.runs(index):
            self.disabled.add(index)
        self.rings[index].enable = on

    def finish_disabling(self) -> Wait:
        """Quiesce the rings that were disabled since the last call."""
        yield from self.quiesce(self.disabled)
        self.disabled.clear()

    def used_index(self, index: int) -> int:
        """Return where a ready ring stands; of any other, its base.

        That is the used index in its memory, or a packed ring's position.
        """
        ring = self.rings[index]
        if ring.areas is None:
            return ring.base
        if ring.packed:
            return self._stands(index, ring, ring.areas)
        address = ring.areas.device + virtio.USED_IDX_OFFSET
        # Less than two bytes come back if another process has cut the file.
        data = self._read(address, 2)
        return int.from_bytes(data, "little") if len(data) == 2 else ring.base

    def fill(self, index: int) -> int | None:
        """Return how many chains the driver offers that are not used yet.

        None of a packed ring, which has no such index, of one that is not ready, and
        of one whose driver writes what cannot be.
        """
        ring = self.rings[index]
        if ring.areas is None or ring.packed:
            return None
        data = self._read(ring.areas.driver + virtio.AVAIL_IDX_OFFSET, 2)
        used = self.used_index(index)
        waiting = (int.from_bytes(data, "little") - used) % virtio.INDEXES
        return waiting if len(data) == 2 and waiting <= ring.size else None

    def _stands(self, index: int, ring: Vring, areas: Areas) -> int:
        entry = positions.of_ring(self._position(index), areas, ring.size)
        if entry is None or entry.origin != self._origin(index):
            return ring.base  # no agent has worked it since it was started
        at = packed.DESC_SIZE * packed.index(entry.at) + packed.FLAGS_OFFSET
        data = self._read(areas.desc + at, 2)
        return entry.resolve(int.from_bytes(data, "little"))

    def _read(self, guest_addr: int, size: int) -> bytes:
        """Read memory that lies in one region; less of it if the file was cut."""
        return self.windows.read(*self.memory.locate(guest_addr, size), size)

    def set_format(self, *, packed: bool) -> None:
        """Set the format of all rings, which the features decide.

        Raises:
            Unservable: a ring that is set up does not fit its memory in that format.
        """
        problem: Unservable | None = None
        for ring in self.rings:
            if ring.packed != packed:
                ring.packed = packed
                try:
                    ring.translate(self.memory)
                except Unservable as error:
                    problem = problem or error
        if problem is not None:
            raise problem

    def find_position(self, index: int) -> str:
        """Find where ring `index` starts, if it is packed and its base out of date.

        Call it before each start of any ring: from then on, its used index or position
        counts, and no more the base that the front-end has set.

        Returns:
            what to tell the user if that is not what the front-end says, or if nothing
            says it: then the ring is `lost`; else nothing.
        """
        ring = self.rings[index]
        ring.base_set = False
        if not ring.packed or ring.base_known or ring.areas is None:
            return ""
        entry = positions.of_ring(self._position(index), ring.areas, ring.size)
        data = self._read(ring.areas.desc, packed.DESC_SIZE * ring.size)
        said, found = ring.base, positions.choose(ring.base, entry, data)
        if found is None:
            ring.lost = True
            return (
                f"ring {index} is packed and has been worked, and nothing says where "
                "it stands: reload the master's driver"
            )
        ring.base, ring.base_known = found, True
        # User Mode Linux says 0 of a ring that is new.
        if found == said or (found == packed.START and not said):
            return ""
        return f"ring {index} is to start at {said:#x}, and stands at {found:#x}"

    def forget_lost(self) -> bool:
        """Let `find_position` look again for the rings that are `lost`; return if any.

        An agent that has just come may have said where they stand.
        """
        lost = [ring for ring in self.rings if ring.lost]
        for ring in lost:
            ring.lost = False
        return bool(lost)

    def ring(self, index: int) -> Vring:
        """Return the ring of an index that came from the front-end.

        Raises:
            ProtocolError: the device has no such ring.
        """
        if index >= len(self.rings):
            raise ProtocolError(
                f"vring {index}; there are {len(self.rings)}", code="P047"
            )
        return self.rings[index]

    def quiesce(self, indexes: Iterable[int]) -> Wait:
        """Quiesce those of these rings that are ready, and read where they stand."""
        ready = frozenset(i for i in indexes if self.rings[i].ready)
        if not ready:
            return
        yield Quiesce(ready)
        self.note_stopped(ready)

    def note_stopped(self, indexes: Iterable[int]) -> None:
        """Read where these rings stand: the agent has stopped them."""
        # Packets complete in order, so the used index is where the ring goes on: chains
        # that the agent took and did not return are taken again.  Read the index from
        # memory: an agent that is late or dead cannot be asked.
        for index in indexes:
            ring = self.rings[index]
            if not ring.base_set:
                ring.base, ring.base_known = self.used_index(index), True

    def quiesce_all(self) -> Wait:
        """Quiesce every ring that is ready, and read where they stand."""
        return self.quiesce(range(len(self.rings)))

    def keep_backend_channel(self, fd: Fd | None) -> None:
        """Keep the channel for requests of the back-end, and close the previous one."""
        if self.backend_channel is not None:
            self.backend_channel.close()
        self.backend_channel = fd

    def close(self) -> None:
        """Release everything, because the front-end is gone."""
        for ring in self.rings:
            ring.reset()
        self.keep_backend_channel(None)
