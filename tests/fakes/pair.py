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
from typing import Self, TypedDict, TypeVar, Unpack

from tests.fakes.driver import Driver, Machine
from tests.waiting import eventually
from vhostpci_guest.dataplane.interface import RingConf, RingStatus
from vhostpci_guest.dataplane.native import RingIndex, Worker
from vhostpci_guest.interfaces import Call, Eventfd
from vhostpci_shared.metadata import AgentRingState

RX, TX = RingIndex.RX, RingIndex.TX

HDR = bytes(12)

T = TypeVar("T")


class Negotiated(TypedDict):
    """What both rings have in common."""

    hdr_len: int
    max_packet: int
    event_idx: bool
    indirect: bool
    mergeable: bool


class RingOptions(TypedDict, total=False):
    """What a test changes in a ring's conf()."""

    desc: int
    driver: int
    device: int
    size: int
    base: int
    hdr_len: int
    max_packet: int
    event_idx: bool
    kick_fd: int | None
    call: Call | None
    meta_addr: int
    session: int


class Pair:
    """Options are those of the rings and the worker.

    ``tap_fd`` is a real TAP, in place of the socket pair.
    """

    def __init__(
        self,
        *regions: tuple[int, int],
        num: int = 8,
        start: int = 0,
        event_idx: bool = False,
        indirect: bool = True,
        mergeable: bool = True,
        hdr_len: int = 12,
        max_packet: int = 65600,
        kicks: bool = True,
        threaded: bool = False,
        running: bool = True,
        spin: float = 0.0,
        poll_max: float = 5e-3,
        hold: float = 0.05,
        tap_fd: int | None = None,
    ) -> None:
        self.base = start
        self._negotiated: Negotiated = {
            "hdr_len": hdr_len,
            "max_packet": max_packet,
            "event_idx": event_idx,
            "indirect": indirect,
            "mergeable": mergeable,
        }
        self._kicks = kicks
        with ExitStack() as stack:
            self.machine = stack.enter_context(
                Machine(*regions, num=num, start=start, event_idx=event_idx)
            )
            self.memory = self.machine.memory
            self.rx, self.tx = self.machine.rx, self.machine.tx
            self.meta = {index: self.memory.allocate(64, 64) for index in RingIndex}
            self.ours, self.tap = map(stack.enter_context, _packet_sockets())
            self.events_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stack.callback(os.close, self.events_fd)
            self.worker = stack.enter_context(
                Worker(
                    self.ours.fileno() if tap_fd is None else tap_fd,
                    events_fd=self.events_fd,
                    threaded=threaded,
                    spin=spin,
                    poll_max=poll_max,
                    hold=hold,
                )
            )
            self.worker.set_memory(self.memory.table())
            if running:
                self.start(RX)
                self.start(TX)
            self._stack = stack.pop_all()

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
        """A new session: both sides forget all, and go on at the used idx."""
        base = self.worker.stop(index)
        self.driver(index).forget(base)
        self.start(index, base=base)

    def settle(self) -> None:
        """Let a worker without a thread do all that it can."""
        for _ in range(10_000):
            if not self.worker.step():
                return
        raise AssertionError("the worker does not come to rest")

    def status(self, index: RingIndex) -> RingStatus:
        return self.worker.status(index)

    def state(self, index: RingIndex) -> AgentRingState:
        return self.worker.status(index).state

    def packets(self) -> list[bytes]:
        """What has arrived at the TAP."""
        got = []
        with suppress(BlockingIOError):
            while True:
                # Little more than the longest packet: recv() allocates it all
                # under the GIL, and under ASan a MiB takes a millisecond.
                got.append(self.tap.recv(1 << 17))
        return got

    def events(self) -> int:
        try:
            return os.eventfd_read(self.events_fd)
        except BlockingIOError:
            return 0


def _packet_sockets() -> tuple[socket.socket, socket.socket]:
    """Two ends that keep packets apart, as a TAP does, and don't block."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends


def wait_for(what: Callable[[], list[T]]) -> list[T]:
    """Wait until a list is not empty."""
    got: list[T] = []

    def look() -> bool:
        got.extend(what())
        return bool(got)

    assert eventually(look)
    return got


class Background:
    """Calls something again and again in a thread, until left."""

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
