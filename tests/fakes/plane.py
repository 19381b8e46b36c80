# SPDX-License-Identifier: Apache-2.0
"""A data plane and a port that move nothing, and remember what they were told."""

import os
from collections.abc import Callable, Sequence, Set
from dataclasses import replace

from vhostpci_guest.dataplane.interface import (
    MemRegion,
    RingConf,
    RingRefused,
    RingStatus,
    Stats,
)
from vhostpci_guest.errors import Unusable
from vhostpci_guest.eventfds import new_eventfd, signal
from vhostpci_guest.net_options import NetOptions
from vhostpci_guest.tap.naming import Rules
from vhostpci_guest.tap.tap_port import Port, Ports
from vhostpci_shared.metadata import AgentRingState


class FakePlane:
    """A `DataPlane`; rings run until they are stopped, or stop by themselves."""

    def __init__(self, tap_fds: Sequence[int] = (0,)) -> None:
        self.tap_fds = tuple(tap_fds)
        self.memory: tuple[MemRegion, ...] = ()
        self.running: dict[int, RingConf] = {}
        self.starts: list[tuple[int, int]] = []
        """Each start: ring, and the index it starts at."""
        self.stops: list[int] = []
        self.stuck: set[int] = set()
        """Rings that don't stop in time."""
        self.refuses: dict[int, RingRefused] = {}
        self.refuse_once: Callable[[], RingRefused] | None = None
        """Makes what the next start is refused with."""
        self.watch: Callable[[str, int], None] = lambda _what, _index: None
        """Is told of each start and stop, when it happens."""
        self.closed = False
        self._events = new_eventfd()
        self._statuses: dict[int, RingStatus] = {}

    def fileno(self) -> int:
        """Return the eventfd of rings that stopped by themselves."""
        return self._events

    def set_memory(self, regions: Sequence[MemRegion]) -> None:
        """Remember it; a plane whose rings run must not be asked."""
        assert not self.running, "memory changes while rings run"
        self.memory = tuple(regions)

    def start(self, index: int, conf: RingConf) -> None:
        """Run a ring."""
        assert index not in self.running, f"ring {index} is started twice"
        if self.refuse_once is not None:
            make, self.refuse_once = self.refuse_once, None
            raise make()
        if index in self.refuses:
            raise self.refuses[index]
        self.watch("start", index)
        self.running[index] = conf
        self.starts.append((index, conf.base))
        self.move(index, conf.base)

    def stop(self, index: int) -> int:
        """Stop a ring."""
        if index in self.stuck:
            raise TimeoutError("stuck")
        self.watch("stop", index)
        self.stops.append(index)
        self.running.pop(index, None)
        return self._statuses[index].index

    def status(self, index: int) -> RingStatus:
        """Return how a ring stands."""
        return self._statuses.get(index, RingStatus())

    def move(self, index: int, at: int, packets: int = 0) -> None:
        """Let a ring get to an index."""
        self._statuses[index] = RingStatus(
            state=AgentRingState.RUNNING, index=at, stats=Stats(packets=packets)
        )

    def stop_by_itself(self, index: int, state: AgentRingState, reason: str) -> None:
        """Let a ring stop by itself."""
        status = self._statuses[index]
        self._statuses[index] = replace(status, state=state, reason=reason)
        signal(self._events)

    def close(self) -> None:
        """Close the eventfd."""
        if not self.closed:
            self.closed = True
            self.running.clear()
            os.close(self._events)


class FakePort(Port):
    """A port whose TAP is only told of."""

    def __init__(self, device: str = "0000:00:05.0") -> None:
        super().__init__(Ports(Rules()), device)
        self.queues = 0
        self.doings: list[str] = []
        self.options: NetOptions | None = None
        self.told_mtu = 0
        self.plugged = False
        self.used: frozenset[int] = frozenset()
        self.watch: Callable[[], None] = lambda: None
        """Is called when the queues that are used change."""
        self.bridge_looks = 0
        self.deleted = False
        """Whether somebody has deleted the TAP."""

    @property
    def name(self) -> str | None:
        """Return a name."""
        return "vp0" if self.queues else None

    @property
    def carrier(self) -> bool:
        """Whether the cable is in."""
        return self.plugged

    @property
    def mtu(self) -> int:
        """Return an MTU."""
        return 1500

    def open(self, queues: int, name: str) -> tuple[int, ...]:
        """Return numbers that are no descriptors."""
        self.doings.append(f"open {name}")
        self.queues = queues
        return tuple(range(1000, 1000 + queues))

    def set_options(self, options: NetOptions) -> None:
        """Remember them."""
        self.options = options

    def use_queues(self, pairs: Set[int]) -> None:
        """Remember them."""
        if pairs != self.used:
            self.used = frozenset(pairs)
            self.watch()

    def check(self) -> None:
        """Miss what was deleted."""
        if self.deleted:
            raise Unusable("TAP vp0 is gone")

    def set_carrier(self, on: bool) -> None:
        """Remember it."""
        self.plugged = on

    def follow_mtu(self, mtu: int) -> None:
        """Remember it."""
        self.told_mtu = mtu

    def follow_bridge(self) -> None:
        """Count it."""
        self.bridge_looks += 1

    def close(self) -> None:
        """Remember it."""
        self.doings.append("close")
