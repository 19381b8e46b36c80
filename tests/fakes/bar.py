# SPDX-License-Identifier: Apache-2.0
"""A fake device without a VM, and the daemon's side of its metadata.

The window is a memfd, because the agent needs an address as a BAR has one.  A doorbell
is recorded instead of rung.
"""

import os
from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack

from vhostpci_guest.dataplane.mapping import Mapping
from vhostpci_guest.eventfds import drain, new_eventfd, signal
from vhostpci_guest.interfaces import Call, Doorbell, Eventfd, Window, WindowFile
from vhostpci_shared import metadata as md
from vhostpci_shared.access import Metadata, find
from vhostpci_shared.metadata import DeviceFlag, RingFlag

SIZE = 1 << 20
FEATURES = 1 << 32
RUNS = RingFlag.STARTED | RingFlag.ENABLED | RingFlag.CALL
MEMORY = md.Region(guest_addr=0, size=SIZE - md.SIZE, window=0, offset=0)
DOORBELLS = 0x1000
"""A made-up address of the doorbell register."""


class FakeDevice:
    """A `Device` whose window is a memfd.

    Args:
        size: bytes of its window.
        vectors: number of its vectors.
        interrupts: whether vectors have eventfds; without them the agent polls.
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
        """Peers that have no doorbell."""
        self.eventfds = False
        """Whether doorbells are eventfds, as a daemon's socket gives them."""
        self.made: dict[tuple[int, int], int] = {}
        """The last eventfd of each doorbell, by peer and vector."""
        self._undo = ExitStack()
        self.fd = os.memfd_create("bar")
        self._undo.callback(os.close, self.fd)
        os.ftruncate(self.fd, size)
        mapping = Mapping(self.fd, size)
        self._undo.callback(mapping.close)
        self.window = Window(
            window, mapping.address, mapping.view, name, WindowFile(self.fd)
        )
        self._vectors = [new_eventfd() for _ in range(vectors if interrupts else 0)]
        for vector in self._vectors:
            self._undo.callback(os.close, vector)

    def alarms(self) -> Iterator[int]:
        """Return no alarm: the test sets `lost` instead."""
        return iter(())

    def vector(self, index: int) -> int | None:
        """Return the eventfd of a vector; None where interrupts are off."""
        return self._vectors[index] if index < len(self._vectors) else None

    def interrupt(self, index: int) -> None:
        """Signal one of our vectors, as a peer would."""
        signal(self._vectors[index])

    def interrupted(self, index: int) -> bool:
        """Clear one of our vectors; return whether it was signalled."""
        return drain(self._vectors[index])

    def doorbell(self, peer: int, vector: int) -> Call | None:
        """Return a peer's doorbell."""
        if peer in self.absent:
            return None
        if not self.eventfds:
            return Doorbell(DOORBELLS, peer, vector)
        self.made[peer, vector] = new_eventfd()
        return Eventfd(self.made[peer, vector])

    def ring(self, peer: int, vector: int) -> None:
        """Record that a doorbell was rung."""
        self.rung.append((peer, vector))

    def close(self) -> None:
        """Unmap the window."""
        if not self.closed:
            self.closed = True
            self._undo.close()


class FakeWindows:
    """A `Windows` whose windows the test plugs and unplugs."""

    def __init__(self) -> None:
        self.wanted: Set[int] = frozenset()
        self.watch: Callable[[], None] = lambda: None
        """Called before a window is unmapped."""
        self._there: dict[int, FakeDevice] = {}
        self._gone: list[FakeDevice] = []

    def plug(self, number: int, size: int = SIZE) -> FakeDevice:
        """Plug a window; return the device that shows it."""
        self._there[number] = FakeDevice(size=size, window=number)
        return self._there[number]

    def pull(self, number: int) -> None:
        """Unplug a window; it stays mapped until the next `want`."""
        self._gone.append(self._there.pop(number))

    def find(self, number: int) -> Window | None:
        """Return a plugged window."""
        return self._there[number].window if number in self._there else None

    def want(self, numbers: Set[int]) -> None:
        """Unmap the windows that are no longer wanted or no longer plugged."""
        for number in self._there.keys() & self.wanted - numbers:
            self.pull(number)
        self.wanted = frozenset(numbers)
        while self._gone:
            self.watch()
            self._gone.pop().close()

    def close(self) -> None:
        """Unmap all windows."""
        for device in (*self._there.values(), *self._gone):
            device.close()


class FakeDaemon:
    """A daemon that writes the metadata of a device.

    It maps the window separately, so it can still write after the device is closed.
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
        slave: bool = True,
        kept: bool = False,
        vectors: int | None = None,
        mtu: int = 0,
        name: str = "net0",
        confined: md.Confined = md.NOT_CONFINED,
    ) -> int:
        """Publish a generation; by default there is one queue pair, not running."""
        rings = rings or (ring(session=1, flags=0), ring(1, session=1, flags=0))
        flags = DeviceFlag.MASTER if master else DeviceFlag(0)
        flags |= DeviceFlag.SLAVE if slave else DeviceFlag(0)
        flags |= DeviceFlag.KEPT if kept else DeviceFlag(0)
        device = md.Device(
            instance=1,
            features=features,
            flags=flags,
            queue_pairs=len(rings) // 2,
            vectors=1 + len(rings) if vectors is None else vectors,
            daemon_peer=md.DAEMON_PEER,
            mtu=mtu,
            region_count=0,
            ring_count=0,
            name=name,
        )
        return self.metadata.publish(device, regions, rings, confined)

    def beat(self) -> None:
        """Raise the heartbeat of the daemon."""
        self.metadata.beat()

    def agent(self) -> md.Agent:
        """Return the agent's entry in the metadata."""
        return md.Agent.parse(self.metadata.agent_bytes())

    def ring(self, index: int) -> md.AgentRing:
        """Return the agent's entry for a ring."""
        return self.metadata.agent_ring(index)

    def poked(self) -> bool:
        """Return whether the daemon's doorbell was rung since the last call."""
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
