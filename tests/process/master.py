# SPDX-License-Identifier: Apache-2.0
"""A master without a VM: this machine's network stack behind a virtio-net driver.

    ping, iperf3 ── mtap0 ── Card's thread ── rings in its RAM   ── vhost-user
    (the network namespace that the thread was started in)

The driver's side of the rings is `tests/fakes/driver.py`, QEMU's side of vhost-user
`tests/fakes/frontend.py`.  Offloads are real: mtap0 hands over segments of up to
64 KiB, and takes what the other side sends in as many buffers as it needs.
"""

import os
import select
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.fakes.driver import Desc, Driver, Memory, Region
from tests.fakes.frontend import NO_FEATURES, FrontEnd, RingAt, Socket, region
from tests.fakes.tap import HEADER, TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, open_tap
from vhostpci_shared.vhost_user import MemRegion
from vhostpci_shared.virtio import Feature

TAP = "mtap0"
NUM = 256
RX_BUFFER = 2048
TX_BUFFER = 1 << 17
LONGEST = 65600
RINGS = 0x10000
BUFFERS = 0x100000
RX, TX = 0, 1


class FileRegion(Region):
    """A file as the master's QEMU maps it, from its start on; the file is ours."""

    def __init__(self, guest_addr: int, size: int, fd: int) -> None:
        self.fd = fd
        super().__init__(guest_addr, size, fd)

    def close(self) -> None:
        super().close()
        os.close(self.fd)


class Ram(Memory):
    """A master's RAM, in one file or several; rings and buffers have fixed places."""

    def __init__(self, *regions: FileRegion) -> None:
        self.regions: list[Region] = [*regions]
        self.files = [*regions]
        self.start_again()

    @classmethod
    def of_arena(cls, path: Path, size: int) -> Self:
        """RAM that is the daemon's arena."""
        return cls(FileRegion(0, size, os.open(path, os.O_RDWR | os.O_CLOEXEC)))

    @classmethod
    def of_nodes(cls, *sizes: int) -> Self:
        """RAM of several NUMA nodes, each in a memfd of its own."""
        regions, start = [], 0
        for size in sizes:
            fd = os.memfd_create("node")
            os.ftruncate(fd, size)
            regions.append(FileRegion(start, size, fd))
            start += size
        return cls(*regions)

    @property
    def size(self) -> int:
        """Bytes in all, from guest address 0 on."""
        return sum(file.size for file in self.files)

    def memory_table(self) -> list[tuple[MemRegion, int]]:
        """What QEMU says of it, with the files."""
        return [(region(f.size, guest_addr=f.guest_addr), f.fd) for f in self.files]

    def start_again(self) -> None:
        """The next driver has its rings where the last one had them, zeroed."""
        self._next = RINGS
        self.write(RINGS, bytes(BUFFERS - RINGS))


class Master:
    """A master machine with one card; its driver is loaded by `load`.

    `memory` is the master's own to close.
    """

    def __init__(self, socket: Path, memory: Ram) -> None:
        self.memory = memory
        self._stack = ExitStack()
        self._stack.callback(memory.close)
        self._socket = socket
        self.tap = open_tap(TAP, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
        self._stack.callback(os.close, self.tap)
        self.frontend = self._connect()
        self._stack.callback(lambda: self.frontend.close())
        self.card: Card | None = None

    def _connect(self) -> FrontEnd:
        frontend = FrontEnd(Socket(self._socket), self.memory.memory_table())
        frontend.connect()
        return frontend

    def load(self, *, without: Feature = NO_FEATURES) -> None:
        """Load the driver: new rings, started at 0."""
        self.memory.start_again()
        self.frontend.features &= ~without
        self.card = Card(self.memory, self.frontend, self.tap)

    def unload(self) -> list[int]:
        """Stop the rings; return where the back-end says that they stand."""
        bases = [self.frontend.stop_ring(index) for index in (RX, TX)]
        self.stop_card()
        return bases

    def stop_card(self) -> None:
        """The driver's thread ends; the rings stay as they are."""
        if self.card is not None:
            self.card.close()
            self.card = None

    def reconnect(self) -> None:
        """Hang up and connect again, as QEMU does with reconnect=1."""
        self.stop_card()
        self.frontend.close()
        self.frontend = self._connect()

    def close(self) -> None:
        """The machine is gone; a second time does nothing."""
        self.stop_card()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Card:
    """A loaded driver: a thread between the rings and the TAP."""

    def __init__(self, memory: Ram, frontend: FrontEnd, tap: int) -> None:
        self.frontend = frontend
        self._memory = memory
        self._tap = tap
        event_idx = Feature.F_EVENT_IDX in frontend.features
        self._stack = ExitStack()
        self.rx = Driver(memory, num=NUM, event_idx=event_idx, writable=True)
        self._stack.callback(self.rx.close)
        self.tx = Driver(memory, num=NUM, event_idx=event_idx)
        self._stack.callback(self.tx.close)
        self._slots = [BUFFERS + (4 << 20) + i * TX_BUFFER for i in range(64)]
        self._used_slots: dict[int, int] = {}
        self._buffers: dict[int, Desc] = {}
        rings = (self._ring(RX, self.rx), self._ring(TX, self.tx))
        try:
            frontend.driver_ok(rings)
        except BaseException:
            self._stack.close()
            raise
        for index, driver in ((RX, self.rx), (TX, self.tx)):
            os.dup2(frontend.kicks[index], driver.kick_fd, inheritable=False)
            os.dup2(frontend.calls[index], driver.call_fd, inheritable=False)
        for i in range(NUM):
            self._post(Desc(BUFFERS + i * RX_BUFFER, RX_BUFFER))
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="card")
        self._thread.start()

    @staticmethod
    def _ring(index: int, driver: Driver) -> RingAt:
        return RingAt(index, NUM, driver.desc, driver.avail, driver.used)

    def close(self) -> None:
        """End the thread."""
        os.eventfd_write(self._stop, 1)
        self._thread.join(timeout=10)
        assert not self._thread.is_alive(), "the card's thread is stuck"
        os.close(self._stop)
        self._stack.close()

    def _run(self) -> None:
        poll = select.poll()
        for fd in (self._stop, self.rx.call_fd, self.tx.call_fd):
            poll.register(fd, select.POLLIN)
        self.rx.kick()
        while True:
            self.rx.ask_for_calls(True)
            self.tx.ask_for_calls(not self._slots)
            poll.register(self._tap, select.POLLIN if self._slots else 0)
            ready = {fd for fd, _ in poll.poll(0 if self._behind() else None)}
            if self._stop in ready:
                return
            self.rx.calls()
            self.tx.calls()
            self._receive()
            self._send()

    def _behind(self) -> bool:
        return self.rx.used_idx() != self.rx.last_used

    def _post(self, buffer: Desc) -> None:
        self._buffers[self.rx.offer(buffer)] = buffer

    def _receive(self) -> None:
        """Hand each packet, of one or more buffers, to the network stack."""
        packet, missing = b"", 0
        for used in self.rx.collect():
            if not missing:
                packet = b""
                missing = int.from_bytes(used.data[10:12], "little") or 1
            packet += used.data
            missing -= 1
            self._post(self._buffers.pop(used.head))
            if not missing:
                with suppress(OSError):  # the interface may be down
                    os.write(self._tap, packet)
        assert not missing, "a packet without its last buffers"
        self.rx.kick()

    def _send(self) -> None:
        """Offer what the network stack sends, as long as there are buffers."""
        for used in self.tx.collect():
            self._slots.append(self._used_slots.pop(used.head))
        for _ in range(len(self._slots)):
            try:
                packet = os.read(self._tap, HEADER.size + LONGEST)
            except OSError:
                break
            slot = self._slots.pop()
            self._memory.write(slot, packet)
            self._used_slots[self.tx.offer(Desc(slot, len(packet)))] = slot
        self.tx.kick()
