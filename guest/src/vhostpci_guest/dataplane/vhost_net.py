# SPDX-License-Identifier: Apache-2.0
"""The data plane of the slave's kernel: vhost-net moves the packets.

Theory of operation.  Each queue pair has a thread of the kernel (`vhost_kernel.py`), to
which we give the master's memory as we have mapped it, the rings, and a queue of the
TAP.  Kicks are the vectors' eventfds, which the kernel waits at by itself.  Calls go to
the master's eventfd, or by our thread to the doorbell (`call_thread.py`).

vhost-net checks neither the session nor whether another back-end has moved the used
index.  So we check both before a ring starts, the session at each tick again, and stop
all rings soon after the daemon's last heartbeat (`silent_ticks`).

It counts nothing.  Packets and bytes are what the TAP has counted: of each ring if
there is one queue pair, else only of all together.  Not by how far a used index moves:
that has 16 bits, so of more than 65,535 chains between two looks some would be missing.
"""

import ctypes
import errno
import logging
import os
import select
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol

from vhostpci_shared.errors import Said, code_of
from vhostpci_shared.limits import shortage
from vhostpci_shared.metadata import AgentRingState
from vhostpci_shared.virtio import (
    AVAIL_ENTRY,
    DESC_SIZE,
    RING_EXTRA,
    USED_ENTRY,
    USED_IDX_OFFSET,
    Feature,
)

from ..eventfds import drain, new_eventfd, signal
from .call_thread import CallThread
from .faults import Fault, reason
from .interface import (
    MemRegion,
    RingConf,
    RingRefused,
    RingStatus,
    Stats,
    locate,
    used_index,
)
from .vhost_kernel import RING_FEATURES, VhostNet
from .workers import given

log = logging.getLogger(__name__)

_UDP = Feature.NET_F_HOST_USO | Feature.NET_F_GUEST_USO4 | Feature.NET_F_GUEST_USO6
_BY_TAP = (
    Feature.NET_F_CSUM
    | Feature.NET_F_HOST_TSO4
    | Feature.NET_F_HOST_TSO6
    | Feature.NET_F_HOST_ECN
    | Feature.NET_F_GUEST_CSUM
    | Feature.NET_F_GUEST_TSO4
    | Feature.NET_F_GUEST_TSO6
    | Feature.NET_F_GUEST_ECN
    | Feature.NET_F_MTU
    | Feature.NET_F_MQ
)
_ALWAYS = (
    # vhost-net takes a header wherever it is, and its chains complete in order; that
    # it may not know the bits only means that it makes no use of them.
    Feature.F_ANY_LAYOUT | Feature.F_IN_ORDER
)

_SAMPLE_TICKS = 5
"""Ticks between two looks at the TAP's counters, which a helper reads."""

_BROKE = Said(
    "vhost-net reports an error in the ring: the master's driver broke it, or its "
    "memory is lost; reload that driver",
    code="R042",
)
_FENCED = reason(Fault.SESSION)

Counters = Sequence[int]
"""A TAP's counters as in /proc/net/dev: received first, sent from the ninth on."""
_TOTALS = {"rx_bytes": 0, "rx_packets": 1, "tx_bytes": 8, "tx_packets": 9}
"""Columns of the counters that are the rings'; rx is what comes from the master."""


class Kernel(Protocol):
    """One queue pair of vhost-net: see `VhostNet`."""

    features: int

    def set_memory(self, regions: Sequence[MemRegion]) -> None: ...

    def set_up(
        self, ring: int, conf: RingConf, addresses: tuple[int, int, int]
    ) -> None: ...

    def set_signals(
        self, ring: int, *, kick: int | None, call: int | None, error: int | None
    ) -> None: ...

    def run(self, ring: int, tap: int) -> None: ...

    def halt(self, ring: int) -> None: ...

    def base(self, ring: int) -> int: ...

    def close(self) -> None: ...


@dataclass(slots=True)
class _Ring:
    """One ring, from its first start on."""

    state: AgentRingState = AgentRingState.IDLE
    conf: RingConf | None = None
    error_fd: int = -1
    """An eventfd that the kernel signals when the ring is broken."""
    index: int = 0
    """The used index when we looked last."""
    reason: str = ""
    counts_calls: bool = True
    """Whether our thread passes its calls on, and so counts them."""


class VhostNetPlane:
    """A `DataPlane` that hands the rings to vhost-net, on a TAP's descriptors.

    Args:
        tap_fds: one for each queue pair; they stay the caller's.
        device: the device's name, for the name of the thread that passes calls on.
        open_node: opens /dev/vhost-net.
        counters: returns the TAP's counters; None if they cannot be read now.
        takes_uso: whether the TAP knows UDP packets with GSO.
        confine: whether that thread has only the system calls that it needs.
        make_kernel: makes the kernel's end of a queue pair.

    Raises:
        Unusable: there is no vhost-net.
        OSError: the machine has no thread for it.
    """

    silent_ticks = 4
    """0.8 s: the daemon beats four times a second; vhost-net does not see it die."""
    waiting = ""

    def __init__(
        self,
        tap_fds: Sequence[int],
        device: str,
        *,
        open_node: Callable[[], int],
        counters: Callable[[], Counters | None],
        takes_uso: bool,
        confine: bool,
        make_kernel: Callable[[int], Kernel] = VhostNet,
    ) -> None:
        self._taps = tuple(tap_fds)
        self._rings: dict[int, _Ring] = {}
        self._memory: tuple[MemRegion, ...] = ()
        self._memory_refused = ""
        self._counters = counters
        self._traffic = _Traffic(single=len(self._taps) == 1)
        self._undo = ExitStack()
        with ExitStack() as undo:
            self._events = undo.enter_context(select.epoll())
            self._fenced_fd = new_eventfd()
            undo.callback(os.close, self._fenced_fd)
            self._events.register(self._fenced_fd, select.EPOLLIN)
            self._calls = CallThread(device, confine=confine)
            undo.callback(self._calls.close)
            # Registered last, so closed first: then no ring runs.
            self._kernels: list[Kernel] = []
            for _ in self._taps:
                self._kernels.append(make_kernel(open_node()))
                undo.callback(self._kernels[-1].close)
            self._undo = undo.pop_all()
        self.offers: int | None = self._offers(takes_uso)
        self._traffic.look(counters())

    def _offers(self, takes_uso: bool) -> int:
        """Return the features that the kernel's vhost-net and the TAP can serve."""
        by_kernel = RING_FEATURES & self._kernels[0].features
        by_tap = _BY_TAP | (_UDP if takes_uso else Feature(0))
        return int(by_kernel | by_tap | _ALWAYS)

    def fileno(self) -> int:
        return self._events.fileno()

    def look(self) -> bool:
        """Halt the rings in which the kernel has found an error."""
        signalled = [fd for fd, _ in self._events.poll(0)]
        for fd in signalled:
            drain(fd)
        for index, ring in self._rings.items():
            if ring.error_fd in signalled and ring.state is AgentRingState.RUNNING:
                self._fail(index, AgentRingState.BROKEN, _BROKE)
        return bool(signalled)

    def _fail(self, index: int, state: AgentRingState, reason: str) -> None:
        """Halt a ring that must not go on; `stop` ends its use."""
        ring = self._rings[index]
        self._halt(index)
        ring.state, ring.reason = state, reason

    def tick(self) -> None:
        """Check the sessions, and look at the TAP's counters now and then."""
        for index, ring in self._rings.items():
            if ring.state is not AgentRingState.RUNNING:
                continue
            if not _session_holds(ring.conf):
                self._fail(index, AgentRingState.FENCED, _FENCED)
                signal(self._fenced_fd)  # so that `look` returns True
        if self._traffic.due():
            self._traffic.look(self._counters())

    def set_memory(self, regions: Sequence[MemRegion]) -> None:
        self._memory, self._memory_refused = tuple(regions), ""
        for region in regions:
            if region.file is not None:
                region.file.give()
        try:
            for kernel in self._kernels:
                kernel.set_memory(regions)
        except OSError as error:
            # Not raised: the device can be served when the master has other memory.
            self._memory_refused = _why_not_memory(error, len(regions))

    def start(self, index: int, conf: RingConf) -> None:
        try:
            addresses = self._check(conf)
        except RingRefused:
            for fd in given(conf):
                os.close(fd)
            raise
        with ExitStack() as undo:
            undo.callback(self._forget, index)
            try:
                self._run(index, conf, addresses)
            except OSError as error:
                if shortage(error):
                    raise
                raise RingRefused(f"vhost-net: {error.strerror}", code="R033") from None
            undo.pop_all()

    def _check(self, conf: RingConf) -> tuple[int, int, int]:
        """Return where a ring's three parts are mapped, if it may start.

        Raises:
            RingRefused: it may not.
        """
        if self._memory_refused:
            raise RingRefused(self._memory_refused, code=code_of(self._memory_refused))
        if conf.packed:
            raise RingRefused("vhost-net serves no packed ring", code="R035")
        if not _session_holds(conf):
            raise RingRefused(_FENCED, AgentRingState.FENCED, code=code_of(_FENCED))
        return self._locate(conf)

    def _locate(self, conf: RingConf) -> tuple[int, int, int]:
        # The whole of each part: the kernel checks that it is memory of ours, and not
        # that it is the master's.
        return (
            self._at(conf.desc, DESC_SIZE * conf.size),
            self._at(conf.driver, RING_EXTRA + AVAIL_ENTRY * conf.size),
            self._at(conf.device, RING_EXTRA + USED_ENTRY * conf.size),
        )

    def _at(self, address: int, size: int) -> int:
        found = locate(address, size, self._memory)
        if found is None:
            raise RingRefused(
                f"{size} bytes of it at {address:#x} do not lie within one memory "
                "region",
                code="R037",
            )
        return found

    def _run(self, index: int, conf: RingConf, addresses: tuple[int, int, int]) -> None:
        """Give a ring to the kernel."""
        pair, number = divmod(index, 2)
        kernel = self._kernels[pair]
        ring = self._rings.setdefault(index, _Ring())
        ring.error_fd = new_eventfd()
        self._events.register(ring.error_fd, select.EPOLLIN)
        signals = self._calls.add(
            index,
            kick_fd=conf.kick_fd,
            call=conf.call,
            owns_kick=conf.owns_kick,
            avail_idx_addr=addresses[1] + USED_IDX_OFFSET,
        )
        ring.counts_calls = signals.counted
        kernel.set_up(number, conf, addresses)
        kernel.set_signals(
            number, kick=signals.kick_fd, call=signals.call_fd, error=ring.error_fd
        )
        ring.conf, ring.index, ring.reason = conf, conf.base, ""
        kernel.run(number, self._taps[pair])
        ring.state = AgentRingState.RUNNING
        # What the driver has offered before may have been a kick to another back-end.
        signal(signals.kick_fd)

    def stop(self, index: int) -> int:
        ring = self._rings[index]
        if ring.state is AgentRingState.RUNNING:
            self._halt(index)
            ring.state = AgentRingState.STOPPED
        self._forget(index)
        return ring.index

    def _halt(self, index: int) -> None:
        """Take a ring back from the kernel, and note where it has stopped."""
        pair, number = divmod(index, 2)
        kernel, ring = self._kernels[pair], self._rings[index]
        kernel.halt(number)
        # Not what is in memory: if another back-end has moved that, the ring must not
        # start there again, and `check_base` refuses it.
        ring.index = kernel.base(number)

    def _forget(self, index: int) -> None:
        """Close what a ring has that does not run."""
        pair, number = divmod(index, 2)
        ring = self._rings.get(index)
        if ring is None or ring.error_fd < 0:
            return
        try:
            self._kernels[pair].set_signals(number, kick=None, call=None, error=None)
        finally:
            self._calls.remove(index)
            self._events.unregister(ring.error_fd)
            os.close(ring.error_fd)
            ring.error_fd = -1

    def status(self, index: int) -> RingStatus:
        ring = self._rings.get(index)
        if ring is None:
            return RingStatus()
        if ring.state is AgentRingState.RUNNING:
            assert ring.conf is not None
            ring.index = used_index(ring.conf.device, self._memory)
        calls, _ = self._calls.counts(index)
        return RingStatus(
            state=ring.state,
            index=ring.index,
            reason=ring.reason,
            stats=replace(self._traffic.stats(index), calls=calls),
        )

    def summary(self) -> dict[str, Any]:
        """Return what `vhostpci-guest status -j` shows of the data plane."""
        counted = all(ring.counts_calls for ring in self._rings.values())
        more = [] if counted else ["calls"]
        return {
            "not_counted": [*self._traffic.not_counted, *more],
            "totals": self._traffic.totals(),
        }

    def close(self) -> None:
        # Each step runs even if another fails: a kernel that is closed halts its rings,
        # too.  The last entry runs first.
        for index, ring in self._rings.items():
            self._undo.callback(self._forget, index)
            if ring.state is AgentRingState.RUNNING:
                self._undo.callback(self._halt, index)
                ring.state = AgentRingState.STOPPED
        self._undo.close()


class _Traffic:
    """What the TAP has counted since the data plane was made.

    Args:
        single: whether the TAP has one queue pair, so that its counters are the rings'.
    """

    def __init__(self, *, single: bool) -> None:
        self._single = single
        self._first: Counters | None = None
        self._last: Counters | None = None
        self._ticks = 0

    @property
    def not_counted(self) -> list[str]:
        """Return the names of a ring's counts, as in the status, that stay at 0."""
        counts = ["kicks", "drops"]
        by_ring = self._single and self._first is not None
        return counts if by_ring else [*counts, "packets", "octets"]

    def due(self) -> bool:
        """Count a tick; return whether to look at the TAP's counters."""
        self._ticks += 1
        return self._ticks % _SAMPLE_TICKS == 0

    def look(self, counters: Counters | None) -> None:
        """Take the TAP's counters over."""
        self._first = self._first or counters
        self._last = counters or self._last

    def totals(self) -> dict[str, int]:
        """Return the counts of all rings together, as `stats` names them.

        Empty: the TAP could not be read yet.
        """
        if self._first is None or self._last is None:
            return {}
        return {
            name: self._last[column] - self._first[column]
            for name, column in _TOTALS.items()
        }

    def stats(self, index: int) -> Stats:
        """Return the counts of a ring."""
        if not self._single or not (totals := self.totals()):
            return Stats()
        # The TAP receives what the master transmits.
        way = "rx" if index % 2 else "tx"
        return Stats(packets=totals[f"{way}_packets"], bytes=totals[f"{way}_bytes"])


def _session_holds(conf: RingConf | None) -> bool:
    """Whether the metadata still names the session in which a ring was started."""
    if conf is None or not conf.meta_addr:
        return True
    # The session is the first of the entry's members (metadata.Ring).
    return ctypes.c_uint64.from_address(conf.meta_addr).value == conf.session


def _why_not_memory(error: OSError, count: int) -> str:
    if error.errno == errno.E2BIG:
        return Said(
            f"the master's memory has {count} regions, more than vhost-net takes: "
            "modprobe vhost max_mem_regions=256, or use --data-plane ring",
            code="R043",
        )
    text = f"vhost-net refuses the master's memory: {error.strerror}"
    return Said(text, code="R044")
