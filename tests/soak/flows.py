# SPDX-License-Identifier: Apache-2.0
"""Fake masters and slaves at one daemon, which count what they see of its end.

master: FrontEnd ──kick──► daemon ──vector 2──► slave: SlaveClient
        (a QEMU's messages) ◄──────call peer───────┘

A *trip* is a kick that the daemon relays and the call that answers it.  A signal that
is lost ends its flow, which is what the test sees.
"""

import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.fakes.frontend import FrontEnd, RingAt, Socket, region
from tests.fakes.slave_client import SlaveClient
from tests.waiting import is_readable, wait_for

TX = 1
"""The ring that is kicked."""
VECTOR = 1 + TX
PAUSE = 0.005
"""Seconds between two trips of a flow."""


class Pair:
    """A front-end and a slave at one device, with rings that are started.

    Args:
        run_dir: has the device's sockets.
        arena: the device's memory.
        name: the device's.
    """

    def __init__(self, run_dir: Path, arena: Path, name: str) -> None:
        self.name = name
        with ExitStack() as undo:
            slave = self.slave = SlaveClient(run_dir / f"{name}.ivshmem")
            undo.callback(slave.close)
            slave.handshake()
            memory = os.open(arena, os.O_RDWR | os.O_CLOEXEC)
            undo.callback(os.close, memory)
            table = [(region(os.fstat(memory).st_size // 2), memory)]
            self.front_end = FrontEnd(Socket(run_dir / f"{name}.vhost-user"), table)
            undo.callback(self.front_end.close)
            self.front_end.connect()
            self.front_end.driver_ok([RingAt.nth(0), RingAt.nth(TX)])
            wait_for(self._introduced, f"{name}: the slave knows how to call")
            self._stack = undo.pop_all()
        self.trips, self.longest = 0, 0.0
        self._began: float | None = None
        self._answered = False

    def _introduced(self) -> bool:
        while is_readable(self.slave.socket.fileno(), 0.0):
            self.slave.read()
        self._call = self._call_fd()
        return self._call is not None

    def _call_fd(self) -> int | None:
        with self.slave.metadata() as metadata:
            snapshot = metadata.snapshot()
            rings = () if snapshot is None else snapshot.rings
        if not rings or not rings[TX].runs:
            return None
        vectors = self.slave.peers.get(rings[TX].call_peer, [])
        return vectors[rings[TX].call_vector] if vectors else None

    def sockets(self) -> list[int]:
        """Return the descriptors that hang up if the daemon leaves either of them."""
        transport = self.front_end.transport
        assert isinstance(transport, Socket)
        return [transport.socket.fileno(), self.slave.socket.fileno()]

    def begin(self, now: float) -> None:
        """Begin a trip, unless there is one."""
        if self._began is None:
            self._began, self._answered = now, False
            self.front_end.kick(TX)

    def on_vector(self) -> None:
        """Answer a kick that has arrived at the slave."""
        os.eventfd_read(self.slave.own[VECTOR])
        if self._began is not None:
            assert self._call is not None, "no call peer"
            self._answered = True
            os.eventfd_write(self._call, 1)

    def on_call(self) -> None:
        """End a trip; a call that answers nothing is one that was signalled again."""
        os.eventfd_read(self.front_end.calls[TX])
        if self._began is not None and self._answered:
            self.longest = max(self.longest, time.monotonic() - self._began)
            self._began = None
            self.trips += 1

    def close(self) -> None:
        """Hang up."""
        self._stack.close()


class Flows:
    """Trips on some devices, and a look at the connections of all, in a thread.

    Args:
        pairs: all of them.
        flowing: how many of them have trips.
    """

    def __init__(self, pairs: Iterable[Pair], flowing: int) -> None:
        self._pairs = list(pairs)
        self._flowing = self._pairs[:flowing]
        self._hung_up: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.failure: Exception | None = None

    @property
    def hangups(self) -> int:
        """Connections that the daemon has ended."""
        return len(self._hung_up)

    @property
    def trips(self) -> int:
        """Trips of all flows."""
        return sum(pair.trips for pair in self._flowing)

    def take_longest(self) -> float:
        """Return the seconds of the longest trip since the last call."""
        longest = max(pair.longest for pair in self._flowing)
        for pair in self._flowing:
            pair.longest = 0.0
        return longest

    def wait_trips(self, count: int) -> None:
        """Wait until each flow has made so many more trips."""
        ends = [(pair, pair.trips + count) for pair in self._flowing]
        wait_for(
            lambda: self.failure or all(pair.trips >= end for pair, end in ends),
            lambda: f"no trip: {[pair.name for pair, end in ends if pair.trips < end]}",
        )
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            self._poll()
        except Exception as error:
            self.failure = error

    def _poll(self) -> None:
        poll = select.poll()
        for pair in self._pairs:
            for fd in pair.sockets():
                poll.register(fd, select.POLLRDHUP)
        handlers: dict[int, Callable[[], None]] = {}
        for pair in self._flowing:
            handlers[pair.slave.own[VECTOR]] = pair.on_vector
            handlers[pair.front_end.calls[TX]] = pair.on_call
        for fd in handlers:
            poll.register(fd, select.POLLIN)
        due = 0.0
        while not self._stop.is_set():
            now = time.monotonic()
            if now >= due:
                due = now + PAUSE
                for pair in self._flowing:
                    pair.begin(now)
            for fd, _ in poll.poll(1000 * PAUSE):
                if fd in handlers:
                    handlers[fd]()
                else:
                    self._hung_up.add(fd)
                    poll.unregister(fd)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
