# SPDX-License-Identifier: Apache-2.0
"""A fake data plane and a fake TAP port, which record calls and move no packets."""

import ctypes
import os
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from typing import Any, TypedDict

from vhostpci_guest.dataplane.faults import Fault
from vhostpci_guest.dataplane.interface import (
    MemRegion,
    RingConf,
    RingRefused,
    RingStatus,
    Stats,
    Stopping,
)
from vhostpci_guest.dataplane.ring_features import SERVES
from vhostpci_guest.errors import Unusable
from vhostpci_guest.eventfds import drain, new_eventfd, signal
from vhostpci_guest.interfaces import Eventfd
from vhostpci_guest.net_options import NetOptions
from vhostpci_guest.tap.naming import Rules
from vhostpci_guest.tap.tap_port import Plane, PlaneMaker, Ports, TapPort
from vhostpci_shared.metadata import AgentRingState


class FakePlane:
    """A `DataPlane` whose rings run until the agent or the test stops them."""

    def __init__(self, port: TapPort | None = None, device: str = "") -> None:
        self.device = device
        self.port = port
        self.silent_ticks = 15
        self.offers: int | None = int(SERVES)
        self.waiting = ""
        self.memory: tuple[MemRegion, ...] = ()
        self.running: dict[int, RingConf] = {}
        self.starts: list[tuple[int, int]] = []
        """The ring and the index of each start."""
        self.stops: list[int] = []
        self.stuck: set[int] = set()
        """Rings whose stop raises TimeoutError."""
        self.slow: set[int] = set()
        """Rings whose stop takes a while: until the test takes them out of here."""
        self.refuses: dict[int, RingRefused] = {}
        self.refuse_once: Callable[[], RingRefused] | None = None
        """Makes the error that the next start raises; used once."""
        self.watch: Callable[[str, int], None] = lambda _what, _index: None
        """Called with "start" or "stop" and the ring, at each start and stop."""
        self.when_looked: Callable[[], object] = lambda: None
        """Called at each look."""
        self.closed = False
        self._events = new_eventfd()
        self._statuses: dict[int, RingStatus] = {}

    def fileno(self) -> int:
        """Return the eventfd that is signalled when something happens."""
        return self._events

    def look(self) -> bool:
        """Return whether something has happened."""
        self.when_looked()
        return drain(self._events)

    def tick(self) -> None:
        """Do nothing."""

    def summary(self) -> dict[str, Any]:
        """Return nothing beside the rings."""
        return {}

    def happen(self) -> None:
        """Make the agent look."""
        signal(self._events)

    def set_memory(self, regions: Sequence[MemRegion]) -> None:
        """Record the regions; fail the test if a ring still runs."""
        assert not self.running, "memory changes while rings run"
        self.memory = tuple(regions)

    def start(self, index: int, conf: RingConf) -> None:
        """Run a ring."""
        assert index not in self.running, f"ring {index} is started twice"
        if self.refuse_once is not None:
            make, self.refuse_once = self.refuse_once, None
            raise make()
        assert not self.waiting, f"ring {index} is started without a back-end"
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
        if index in self.slow:
            raise Stopping
        self.watch("stop", index)
        self.stops.append(index)
        conf = self.running.pop(index, None)
        if conf is not None:
            _close_given(conf)
        return self._statuses[index].index

    def status(self, index: int) -> RingStatus:
        """Return the state of a ring."""
        return self._statuses.get(index, RingStatus())

    def move(self, index: int, at: int, packets: int = 0) -> None:
        """Advance a running ring to an index, in the master's memory too."""
        _write_used(self.running[index].device, at, self.memory)
        self._statuses[index] = RingStatus(
            state=AgentRingState.RUNNING, index=at, stats=Stats(packets=packets)
        )

    def stop_by_itself(
        self,
        index: int,
        state: AgentRingState,
        reason: str,
        fault: Fault = Fault.NONE,
    ) -> None:
        """Stop a ring as if the worker had found it broken or fenced."""
        status = self._statuses[index]
        self._statuses[index] = replace(status, state=state, reason=reason, fault=fault)
        _close_given(self.running.pop(index))
        signal(self._events)

    def lose(self, index: int) -> None:
        """Stop a ring as if the back-end had died."""
        self._statuses[index] = replace(
            self._statuses[index], state=AgentRingState.STOPPED, index_known=False
        )
        _close_given(self.running.pop(index))
        signal(self._events)

    def close(self) -> None:
        """Close the eventfd."""
        if not self.closed:
            self.closed = True
            for conf in self.running.values():
                _close_given(conf)
            self.running.clear()
            os.close(self._events)


def _close_given(conf: RingConf) -> None:
    """Close what a ring's data plane has to close."""
    if isinstance(conf.call, Eventfd):
        os.close(conf.call.fd)
    if conf.owns_kick and conf.kick_fd is not None:
        os.close(conf.kick_fd)


def _write_used(device: int, at: int, memory: Sequence[MemRegion]) -> None:
    for region in memory:
        inside = device + 2 - region.guest_addr
        if 0 <= inside < region.size:
            ctypes.c_uint16.from_address(region.host_addr + inside).value = at


class Packetless(TypedDict):
    """The arguments of `Ports` for data planes."""

    plane: Plane


NO_PACKETS = Packetless(plane=Plane("ring", FakePlane))
"""For ports whose data planes move no packets."""


def opened(port: TapPort, queues: int, name: str) -> tuple[int, ...]:
    """Open a port; return the descriptors of its TAP."""
    port.open(queues, name)
    return tuple(port.fds)


class FakePort(TapPort):
    """A `Port` that records what is asked of its TAP, and makes none.

    Args:
        device: as for `TapPort`.
        make_plane: makes the data planes.
    """

    def __init__(
        self, device: str = "0000:00:05.0", make_plane: PlaneMaker = FakePlane
    ) -> None:
        plane = Plane("ring", make_plane)
        super().__init__(Ports(Rules(), plane=plane), device, plane)
        self.queues = 0
        self.doings: list[str] = []
        self.options: NetOptions | None = None
        self.told_mtu = 0
        self.plugged = False
        self.uso = True
        """Whether the TAP is one of Linux 6.2 or later."""
        self.used: frozenset[int] = frozenset()
        self.watch: Callable[[], None] = lambda: None
        """Called when the set of queues in use changes, and when `idle` is asked."""
        self.discarded: list[int] = []
        """The queues that were emptied, in order."""
        self.waiting: list[bool] = []
        """At each further question whether the TAP is idle: whether it is not."""
        self.bridge_looks = 0
        self.deleted = False
        """Whether the TAP counts as deleted."""

    @property
    def name(self) -> str | None:
        """The name of the TAP while it is open."""
        return "vp0" if self.queues else None

    @property
    def carrier(self) -> bool:
        """Whether the carrier is on."""
        return self.plugged

    @property
    def idle(self) -> bool:
        """Whether nothing waits in the TAP."""
        self.watch()
        return not self.waiting or not self.waiting.pop(0)

    @property
    def dropped(self) -> int:
        """What the kernel has dropped of a TAP that there is not."""
        return 0

    @property
    def takes_uso(self) -> bool:
        """Whether the TAP knows UDP packets with GSO."""
        return self.uso

    def open(self, queues: int, name: str) -> None:
        """Record the call."""
        self.doings.append(f"open {name}")
        self.queues = queues

    def leave(self) -> None:
        """Record the call."""
        self.doings.append("leave")

    def set_options(self, options: NetOptions) -> None:
        """Remember them."""
        self.options = options

    def use_queues(self, pairs: Set[int]) -> None:
        """Remember them."""
        if pairs != self.used:
            self.used = frozenset(pairs)
            self.watch()

    def discard(self, pair: int) -> None:
        """Remember which queue was emptied."""
        self.discarded.append(pair)

    def check(self) -> None:
        """Raise `Unusable` if the TAP counts as deleted."""
        if self.deleted:
            raise Unusable("TAP vp0 is gone")

    def set_carrier(self, on: bool) -> None:
        """Remember it."""
        self.plugged = on

    def follow_mtu(self, mtu: int) -> None:
        """Remember it."""
        self.told_mtu = mtu

    def follow_mac(self) -> None:
        """Do nothing."""

    def follow_bridge(self) -> None:
        """Count it."""
        self.bridge_looks += 1

    def close(self) -> None:
        """Remember it."""
        self.doings.append("close")
