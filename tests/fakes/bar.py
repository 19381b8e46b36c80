# SPDX-License-Identifier: Apache-2.0
"""An ivshmem device without a VM, and the daemon's side of its metadata.

The window is a memfd, so that it has an address as a BAR has; doorbells are written
down instead of rung.
"""

import os
from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack

from vhostpci_guest.dataplane.mapping import Mapping
from vhostpci_guest.eventfds import drain, new_eventfd, signal
from vhostpci_guest.interfaces import Call, Doorbell, Window
from vhostpci_shared import metadata as md
from vhostpci_shared.access import Metadata, find
from vhostpci_shared.metadata import DeviceFlag, RingFlag

SIZE = 1 << 20
FEATURES = 1 << 32
RUNS = RingFlag.STARTED | RingFlag.ENABLED | RingFlag.CALL
MEMORY = md.Region(guest_addr=0, size=SIZE - md.SIZE, window=0, offset=0)
DOORBELLS = 0x1000
"""Where the doorbell register would be."""


class FakeDevice:
    """A `Device`.

    Args:
        size: of its window, in bytes.
        vectors: how many it has.
        interrupts: whether they arrive at eventfds; else one has to poll.
        window: its IVPosition.
    """

    def __init__(
        self,
        *,
        size: int = SIZE,
        vectors: int = 3,
        interrupts: bool = True,
        window: int = 0,
        name: str = "0000:00:05.0",
    ) -> None:
        self.name = name
        self.binding = "fake"
        self.vector_count = vectors
        self.settled = True
        self.closed = False
        self.lost = False
        self.rung: list[tuple[int, int]] = []
        self.absent: set[int] = set()
        """Peers that are not there."""
        self._undo = ExitStack()
        self.fd = os.memfd_create("bar")
        self._undo.callback(os.close, self.fd)
        os.ftruncate(self.fd, size)
        mapping = Mapping(self.fd, size)
        self._undo.callback(mapping.close)
        self.window = Window(window, mapping.address, mapping.view, name)
        self._vectors = [new_eventfd() for _ in range(vectors if interrupts else 0)]
        for vector in self._vectors:
            self._undo.callback(os.close, vector)

    def alarms(self) -> Iterator[int]:
        """Return nothing: a test says `lost` aloud."""
        return iter(())

    def vector(self, index: int) -> int | None:
        """Return a vector's eventfd."""
        return self._vectors[index] if index < len(self._vectors) else None

    def interrupt(self, index: int) -> None:
        """Signal one of our vectors, as a peer would."""
        signal(self._vectors[index])

    def interrupted(self, index: int) -> bool:
        """Take what one of our vectors holds; return whether it held anything."""
        return drain(self._vectors[index])

    def doorbell(self, peer: int, vector: int) -> Call | None:
        """Return a peer's doorbell."""
        return None if peer in self.absent else Doorbell(DOORBELLS, peer, vector)

    def ring(self, peer: int, vector: int) -> None:
        """Write down that a doorbell was rung."""
        self.rung.append((peer, vector))

    def close(self) -> None:
        """Unmap the window."""
        if not self.closed:
            self.closed = True
            self._undo.close()


class FakeWindows:
    """A `Windows` whose windows the test plugs in and pulls out."""

    def __init__(self) -> None:
        self.wanted: Set[int] = frozenset()
        self.watch: Callable[[], None] = lambda: None
        """Is called before a window is let go."""
        self._there: dict[int, FakeDevice] = {}
        self._gone: list[FakeDevice] = []

    def plug(self, number: int, size: int = SIZE) -> FakeDevice:
        """Have a window; return the device that shows it."""
        self._there[number] = FakeDevice(size=size, window=number)
        return self._there[number]

    def pull(self, number: int) -> None:
        """Have a window no more; it stays mapped until it is let go."""
        self._gone.append(self._there.pop(number))

    def find(self, number: int) -> Window | None:
        """Return a window that is there."""
        return self._there[number].window if number in self._there else None

    def want(self, numbers: Set[int]) -> None:
        """Unmap what is not wanted, and what is gone."""
        for number in self._there.keys() & self.wanted - numbers:
            self.pull(number)
        self.wanted = frozenset(numbers)
        while self._gone:
            self.watch()
            self._gone.pop().close()

    def close(self) -> None:
        """Unmap all."""
        for device in (*self._there.values(), *self._gone):
            device.close()


class FakeDaemon:
    """What `vhostpci-host` writes into the metadata of a device.

    It has a mapping of its own, and so outlives the device.
    """

    def __init__(self, device: FakeDevice) -> None:
        self._mapping = Mapping(device.fd, device.window.size)
        self.metadata = Metadata(find(self._mapping.view))
        self.metadata.format()
        self._device = device

    def publish(
        self,
        *rings: md.Ring,
        regions: tuple[md.Region, ...] = (MEMORY,),
        features: int = FEATURES,
        master: bool = True,
        vectors: int | None = None,
        mtu: int = 0,
        name: str = "net0",
    ) -> int:
        """Publish a generation; by default there is one queue pair, not running."""
        rings = rings or (ring(session=1, flags=0), ring(1, session=1, flags=0))
        device = md.Device(
            instance=1,
            features=features,
            flags=DeviceFlag.MASTER if master else DeviceFlag(0),
            queue_pairs=len(rings) // 2,
            vectors=1 + len(rings) if vectors is None else vectors,
            daemon_peer=md.DAEMON_PEER,
            mtu=mtu,
            region_count=0,
            ring_count=0,
            name=name,
        )
        return self.metadata.publish(device, regions, rings)

    def beat(self) -> None:
        """Live."""
        self.metadata.beat()

    def agent(self) -> md.Agent:
        """What the agent says of itself."""
        return self.metadata.agent()

    def ring(self, index: int) -> md.AgentRing:
        """What the agent says of a ring."""
        return self.metadata.agent_ring(index)

    def poked(self) -> bool:
        """Whether our doorbell was rung since we looked last."""
        doorbell = (md.DAEMON_PEER, 0)
        rung = doorbell in self._device.rung
        self._device.rung.clear()
        return rung

    def close(self) -> None:
        """Unmap the window."""
        self.metadata.release()
        self._mapping.close()


def ring(
    index: int = 0,
    *,
    session: int,
    flags: int = RUNS,
    size: int = 256,
    base: int = 0,
    call_peer: int = md.FIRST_CALL_PEER,
) -> md.Ring:
    """Return a ring's entry as the daemon writes it."""
    start = 0x10000 * (index + 1)
    return md.Ring(
        session=session,
        flags=RingFlag(flags),
        size=size,
        desc=start,
        driver=start + 0x4000,
        device=start + 0x8000,
        base=base,
        kick_vector=md.FIRST_KICK_VECTOR + index,
        call_peer=call_peer,
        call_vector=index,
    )


def pair(session: int, *, flags: int = RUNS) -> Iterator[md.Ring]:
    """Return the two rings of a queue pair."""
    return (ring(index, session=session, flags=flags) for index in range(2))
