# SPDX-License-Identifier: Apache-2.0
"""A queue pair under test: a worker between a fake master and a fake TAP.

The TAP is a SOCK_SEQPACKET socket pair: readv() and writev() keep packets
apart, as on a TAP, and a test needs no root.
"""

import os
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Self, TypedDict, TypeVar, Unpack

from tests.fakes.driver import Driver, Machine
from tests.fakes.packed_driver import Packed, PackedDriver
from tests.waiting import eventually
from vhostpci_guest.dataplane.interface import RingConf, RingStatus
from vhostpci_guest.dataplane.native import RingIndex, Worker, confine_error
from vhostpci_guest.interfaces import Call, Eventfd
from vhostpci_shared.metadata import AgentRingState

RX, TX = RingIndex.RX, RingIndex.TX

HDR = bytes(12)

_MAPS = Path("/proc/self/maps").read_text()
CAN_CONFINE = not ("libasan" in _MAPS or "libtsan" in _MAPS or confine_error())
"""Whether a thread can have a filter: a sanitizer's own calls would be refused."""

T = TypeVar("T")


class Negotiated(TypedDict):
    """The part of a `RingConf` that both rings of the pair share."""

    hdr_len: int
    max_packet: int
    event_idx: bool
    indirect: bool
    in_order: bool
    mergeable: bool
    packed: bool


class RingOptions(TypedDict, total=False):
    """Fields of a `RingConf` that a test may replace."""

    desc: int
    driver: int
    device: int
    size: int
    base: int
    hdr_len: int
    max_packet: int
    event_idx: bool
    segment_udp: bool
    kick_fd: int | None
    call: Call | None
    meta_addr: int
    session: int
    position_addr: int
    origin: int


class WorkerOptions(TypedDict, total=False):
    """Options of the worker that a test may set; see `Worker`."""

    threaded: bool
    io_uring: bool
    confine: bool
    spin: float
    poll_max: float
    hold: float


class Pair:
    """A worker, the fake master's two rings, and the far end of the TAP.

    Args:
        regions: guest address and size of each region of the master's memory.
        start: index at which both rings start; `Packed` for packed rings.
        kicks: whether the rings have kicks; without them the worker polls.
        running: whether both rings are started at once.
        tap_fd: a real TAP, which replaces the socket pair.
        worker: options of the worker, which by default has no thread.
    """

    def __init__(
        self,
        *regions: tuple[int, int],
        num: int = 8,
        start: int = 0,
        event_idx: bool = False,
        indirect: bool = True,
        in_order: bool = False,
        mergeable: bool = True,
        hdr_len: int = 12,
        max_packet: int = 65600,
        kicks: bool = True,
        running: bool = True,
        tap_fd: int | None = None,
        **worker: Unpack[WorkerOptions],
    ) -> None:
        self.base = start.position(num) if isinstance(start, Packed) else start
        self._negotiated: Negotiated = {
            "hdr_len": hdr_len,
            "max_packet": max_packet,
            "event_idx": event_idx,
            "indirect": indirect,
            "in_order": in_order,
            "mergeable": mergeable,
            "packed": isinstance(start, Packed),
        }
        self._kicks = kicks
        with ExitStack() as stack:
            self._open_rings(stack, regions, num)
            self._open_worker(stack, tap_fd, worker)
            if running:
                self.start(RX)
                self.start(TX)
            self._stack = stack.pop_all()

    def _open_rings(
        self, stack: ExitStack, regions: tuple[tuple[int, int], ...], num: int
    ) -> None:
        """Take the rings of the fake master, with a metadata entry for each."""
        self.machine = machine = Machine(
            *regions,
            kind=PackedDriver if self._negotiated["packed"] else Driver,
            num=num,
            start=self.base,
            event_idx=self._negotiated["event_idx"],
            in_order=self._negotiated["in_order"],
        )
        stack.enter_context(machine)
        self.memory = machine.memory
        self.rx, self.tx = machine.rx, machine.tx
        self.meta = {index: self.memory.allocate(64, 64) for index in RingIndex}

    def _open_worker(
        self, stack: ExitStack, tap_fd: int | None, options: WorkerOptions
    ) -> None:
        """Open the TAP and the worker.

        The stack closes the worker first: a thread may use the TAP and the eventfd
        until then.
        """
        self.ours, self.tap = map(stack.enter_context, _packet_sockets())
        self.events_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        stack.callback(os.close, self.events_fd)
        defaults: WorkerOptions = {"threaded": False, "hold": 0.05}
        worker = Worker(
            self.ours.fileno() if tap_fd is None else tap_fd,
            events_fd=self.events_fd,
            **(defaults | options),
        )
        self.worker = stack.enter_context(worker)
        self.worker.set_memory(self.memory.table())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def driver(self, index: RingIndex) -> Driver:
        return self.rx if index == RX else self.tx

    def conf(self, index: RingIndex, **options: Unpack[RingOptions]) -> RingConf:
        driver = self.driver(index)
        conf = RingConf(
            desc=driver.desc,
            driver=driver.avail,
            device=driver.used,
            size=driver.num,
            base=self.base,
            kick_fd=driver.kick_fd if self._kicks else None,
            call=Eventfd(driver.call_fd),
            meta_addr=self.memory.host_addr(self.meta[index]),
            **self._negotiated,
        )
        return replace(conf, **options)

    def start(self, index: RingIndex, **options: Unpack[RingOptions]) -> None:
        self.worker.start(index, self.conf(index, **options))

    def restart(self, index: RingIndex) -> None:
        """Start a new session: both ends go on at the used index, chains forgotten."""
        base = self.worker.stop(index)
        self.driver(index).forget(base)
        self.start(index, base=base)

    def settle(self) -> None:
        """Step a worker that has no thread until it finds nothing more to do."""
        for _ in range(10_000):
            if not self.worker.step():
                return
        raise AssertionError("the worker still finds work after 10,000 steps")

    def status(self, index: RingIndex) -> RingStatus:
        return self.worker.status(index)

    def after(self, count: int) -> int:
        """Return the index, or position, behind `count` chains of one descriptor."""
        return self.tx.after(self.base, count)

    def state(self, index: RingIndex) -> AgentRingState:
        return self.worker.status(index).state

    def packets(self) -> list[bytes]:
        """Return the packets that have arrived at the TAP since the last call."""
        got = []
        with suppress(BlockingIOError):
            while True:
                # Twice the longest packet is enough.  recv() allocates the whole
                # buffer under the GIL, and under ASan 1 MiB takes a millisecond.
                got.append(self.tap.recv(1 << 17))
        return got

    def events(self) -> int:
        """Return how often a ring was broken or fenced since the last call."""
        try:
            return os.eventfd_read(self.events_fd)
        except BlockingIOError:
            return 0


def _packet_sockets() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets that keep packets apart and do not block."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends


def wait_for(what: Callable[[], list[T]]) -> list[T]:
    """Call `what` until it returns a list that is not empty; return that list."""
    got: list[T] = []

    def look() -> bool:
        got.extend(what())
        return bool(got)

    assert eventually(look)
    return got


class Background:
    """A thread that calls a function repeatedly until the `with` block ends.

    An error of the function ends the thread, and is raised where the block ends.
    """

    def __init__(self, step: Callable[[], object]) -> None:
        self._step = step
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._error: BaseException | None = None

    def _run(self) -> None:
        try:
            while not self._end.is_set():
                self._step()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        if self._error:
            raise self._error
