# SPDX-License-Identifier: Apache-2.0
"""A master without a VM: this machine's network stack behind a virtio-net driver.

    ping, iperf3 ── mtap0 ── Card's thread ── rings in its RAM   ── vhost-user
    (the network namespace that the thread was started in)

The driver's side of the rings is `tests/fakes/driver.py`, QEMU's side of vhost-user
`tests/fakes/frontend.py`.  Offloads are real: mtap0 hands over segments of up to
64 KiB, and takes what the other side sends in as many buffers as it needs; without
mergeable buffers, in a chain of pages for each packet, as Linux's driver.  With several
queue pairs the card gives each flow to one of those that are enabled.
"""

import os
import select
import threading
import zlib
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Self

from tests.fakes.driver import Desc, Driver, Memory, Region
from tests.fakes.frontend import NO_FEATURES, FrontEnd, RingAt, Socket, region
from tests.fakes.packed_driver import FRESH as PACKED_START
from tests.fakes.packed_driver import PackedDriver
from tests.fakes.tap import (
    HEADER,
    TUN_F_CSUM,
    TUN_F_TSO4,
    TUN_F_TSO6,
    TUN_F_USO,
    open_tap,
    set_header_length,
    set_offloads,
)
from vhostpci_shared.vhost_user import MemRegion, Request
from vhostpci_shared.virtio import Feature

TAP = "mtap0"
NUM = 256
RX_BUFFER = 2048
PAGE = 4096
BIG_PAGES = 17
"""Pages of a receive chain, besides the header, where a packet may have 64 KiB."""
RX_AREA = 1 << 20
"""Bytes for the receive buffers of a queue pair, of either kind."""
TX_BUFFER = 1 << 17
SLOTS = 16
FLOW = slice(26, 38)
"""Addresses and ports of a TCP or UDP packet over IPv4."""
LONGEST = 65600
RINGS = 0x10000
BUFFERS = 0x100000
RX, TX = 0, 1
AGAIN = 100
"""Milliseconds until the card looks at descriptors that `listen` may have replaced."""


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
        self.above = min(one.guest_addr for one in regions)
        """Where it begins: above 0 if it is the shared region of a confined master."""
        self.regions: list[Region] = [*regions]
        self.files = [*regions]
        self.start_again()

    @classmethod
    def of_arena(cls, path: Path, size: int, guest_addr: int = 0) -> Self:
        """RAM that is the daemon's arena."""
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        return cls(FileRegion(guest_addr, size, file))

    @classmethod
    def of_nodes(cls, *sizes: int) -> Self:
        """RAM of several NUMA nodes, with a memfd for each."""
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
        self._next = self.above + RINGS
        self.write(self._next, bytes(BUFFERS - RINGS))


class Master:
    """A master machine with one card; its driver is loaded by `load`.

    `memory` is the master's own to close; `packed` is whether its card has packed
    rings.
    """

    def __init__(
        self, socket: Path, memory: Ram, *, queue_pairs: int = 1, packed: bool = False
    ) -> None:
        self.queue_pairs = queue_pairs
        self._packed = packed
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
        frontend = FrontEnd(
            Socket(self._socket),
            self.memory.memory_table(),
            queue_pairs=self.queue_pairs,
            packed=self._packed,
        )
        frontend.connect()
        return frontend

    def load(self, *, without: Feature = NO_FEATURES, channels: int = 1) -> None:
        """Load the driver: new rings, started at 0, of which some pairs are used."""
        self.load_offloads(without)
        self.card = Card(self.memory, self.frontend, self.tap, channels)

    def load_offloads(self, without: Feature) -> None:
        """Empty the rings, and have the TAP do what the features say."""
        self.memory.start_again()
        self.frontend.features &= ~without
        features = self.frontend.features
        set_header_length(self.tap, header_length(features))
        uso = TUN_F_USO if Feature.NET_F_HOST_USO in features else 0
        set_offloads(self.tap, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | uso)

    def set_channels(self, pairs: int) -> None:
        """Use so many queue pairs, as `ethtool -L` does; wait for the yes."""
        assert self.card is not None
        fewer = pairs < self.card.channels
        if fewer:  # nothing is sent to a queue that is about to be disabled
            self.card.set_channels(pairs)
        self.frontend.enable(pairs)
        self.frontend.ask(Request.GET_FEATURES)  # the answers come in order
        if not fewer:
            self.card.set_channels(pairs)

    def unload(self) -> list[int]:
        """Stop the rings; return where the back-end says that they stand."""
        rings = range(2 * self.queue_pairs)
        bases = [self.frontend.stop_ring(index) for index in rings]
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

    def come_back(self) -> None:
        """Hang up and connect again while the driver goes on, as QEMU does."""
        assert self.card is not None
        features = self.frontend.features
        self.frontend.close()
        self.frontend = self._connect()
        self.frontend.features = features
        self.card.describe(self.frontend)

    def stop_and_start(self) -> None:
        """Stop the rings and start them where they stood, as `set_link` off and on."""
        assert self.card is not None
        rings = range(2 * self.queue_pairs)
        bases = [self.frontend.stop_ring(index) for index in rings]
        self.card.describe(self.frontend, bases)

    def close(self) -> None:
        """The machine is gone; a second time does nothing."""
        self.stop_card()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def header_length(features: Feature) -> int:
    """Return the length of the virtio-net header before each packet."""
    long = Feature.F_VERSION_1 | Feature.NET_F_MRG_RXBUF
    return HEADER.size if features & long else HEADER.size - 2


def receive_chains(start: int, features: Feature) -> list[list[Desc]]:
    """Return the chains that a driver posts; their memory is at `start`."""
    if Feature.NET_F_MRG_RXBUF in features:
        return [[Desc(start + i * RX_BUFFER, RX_BUFFER)] for i in range(NUM)]
    # The header in a page, the packet in those behind it.
    size = (1 + BIG_PAGES) * PAGE
    chains = []
    for at in range(start, start + NUM // (1 + BIG_PAGES) * size, size):
        pages = [Desc(at + i * PAGE, PAGE) for i in range(1, 1 + BIG_PAGES)]
        chains.append([Desc(at, header_length(features)), *pages])
    return chains


class Lane:
    """The driver of one queue pair, with its buffers."""

    def __init__(self, memory: Ram, number: int, features: Feature) -> None:
        self.number = number
        self._memory = memory
        self._stack = ExitStack()
        kind = PackedDriver if Feature.F_RING_PACKED in features else Driver
        start = PACKED_START if Feature.F_RING_PACKED in features else 0
        self.rx, self.tx = (
            kind(
                memory,
                num=NUM,
                start=start,
                event_idx=Feature.F_EVENT_IDX in features,
                in_order=Feature.F_IN_ORDER in features,
                writable=writable,
            )
            for writable in (True, False)
        )
        self._stack.callback(self.rx.close)
        self._stack.callback(self.tx.close)
        self._mergeable = Feature.NET_F_MRG_RXBUF in features
        start = memory.above + BUFFERS + number * (RX_AREA + SLOTS * TX_BUFFER)
        self._posted = receive_chains(start, features)
        start += RX_AREA
        self.slots = [start + i * TX_BUFFER for i in range(SLOTS)]
        self._used_slots: dict[int, int] = {}
        self._chains: dict[int, list[Desc]] = {}

    def rings(self) -> list[RingAt]:
        """Where its rings are, and what QEMU has as their bases."""
        return [
            RingAt(
                *(2 * self.number + i, NUM, driver.desc, driver.avail, driver.used),
                driver.base_of_qemu(),
            )
            for i, driver in enumerate((self.rx, self.tx))
        ]

    def listen(self, frontend: FrontEnd) -> None:
        """Take over the eventfds of its rings."""
        for i, driver in enumerate((self.rx, self.tx)):
            index = 2 * self.number + i
            os.dup2(frontend.kicks[index], driver.kick_fd, inheritable=False)
            os.dup2(frontend.calls[index], driver.call_fd, inheritable=False)

    def begin(self, frontend: FrontEnd) -> None:
        """Take over the eventfds of its rings, and fill the receive ring."""
        self.listen(frontend)
        for chain in self._posted:
            self._post(chain)
        self.rx.kick()

    def _post(self, chain: list[Desc]) -> None:
        self._chains[self.rx.offer(*chain)] = chain

    def receive(self) -> list[bytes]:
        """Return the packets that have come, each of one or more buffers."""
        packets, missing = [], 0
        for used in self.rx.collect():
            if not missing:
                packets.append(b"")
                number = int.from_bytes(used.data[10:12], "little")
                missing = number or 1 if self._mergeable else 1
            packets[-1] += used.data
            missing -= 1
            self._post(self._chains.pop(used.head))
        assert not missing, "a packet without its last buffers"
        self.rx.kick()
        return packets

    def send(self, packet: bytes) -> None:
        """Offer a packet; there is a slot for it."""
        slot = self.slots.pop()
        self._memory.write(slot, packet)
        self._used_slots[self.tx.offer(Desc(slot, len(packet)))] = slot

    def finish(self) -> None:
        """Take back the slots of packets that have been sent."""
        for used in self.tx.collect():
            self.slots.append(self._used_slots.pop(used.head))

    @property
    def behind(self) -> bool:
        """Whether something came before it was asked to be told."""
        return (not self.slots and self.tx.has_used()) or self.rx.has_used()

    def close(self) -> None:
        """Close the eventfds."""
        self._stack.close()


class Card:
    """A loaded driver: a thread between the rings and the TAP."""

    def __init__(
        self, memory: Ram, frontend: FrontEnd, tap: int, channels: int = 1
    ) -> None:
        self.frontend = frontend
        self._tap = tap
        self._hdr_len = header_length(frontend.features)
        self._stack = ExitStack()
        self.lanes = [
            Lane(memory, number, frontend.features)
            for number in range(frontend.queue_pairs)
        ]
        for lane in self.lanes:
            self._stack.callback(lane.close)
        self.channels = channels
        try:
            frontend.driver_ok(self._rings(), pairs=channels)
        except BaseException:
            self._stack.close()
            raise
        for lane in self.lanes:
            lane.begin(frontend)
        self._lock = threading.Lock()
        self._runs = threading.Event()
        self._runs.set()
        self._stands = threading.Event()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="card")
        self._thread.start()

    @property
    def rx(self) -> Driver:
        """The first receive ring."""
        return self.lanes[0].rx

    @property
    def tx(self) -> Driver:
        """The first transmit ring."""
        return self.lanes[0].tx

    def _rings(self) -> list[RingAt]:
        return [ring for lane in self.lanes for ring in lane.rings()]

    def describe(self, frontend: FrontEnd, bases: Sequence[int] = ()) -> None:
        """Have a connection serve the rings, which go on, at their bases if given."""
        self.frontend = frontend
        rings = self._rings()
        if bases:
            rings = [
                replace(ring, base=base)
                for ring, base in zip(rings, bases, strict=True)
            ]
        frontend.driver_ok(rings, pairs=self.channels)
        for lane in self.lanes:
            lane.listen(frontend)

    def set_channels(self, pairs: int) -> None:
        """Send through so many queue pairs; what has been offered is on its way."""
        with self._lock:
            self.channels = pairs

    def pause(self) -> None:
        """Do nothing more, as a guest whose processors are stopped."""
        self._stands.clear()
        self._runs.clear()
        self._stands.wait()

    def go_on(self) -> None:
        """Go on after `pause`."""
        self._runs.set()

    def close(self) -> None:
        """End the thread."""
        os.eventfd_write(self._stop, 1)
        self.go_on()
        self._thread.join(timeout=10)
        assert not self._thread.is_alive(), "the card's thread is stuck"
        os.close(self._stop)
        self._stack.close()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        for lane in self.lanes:
            poll.register(lane.rx.call_fd, select.POLLIN)
            poll.register(lane.tx.call_fd, select.POLLIN)
        while True:
            for lane in self.lanes:
                lane.rx.ask_for_calls(True)
                lane.tx.ask_for_calls(not lane.slots)
            poll.register(self._tap, select.POLLIN if self._room() else 0)
            behind = any(lane.behind for lane in self.lanes)
            ready = {fd for fd, _ in poll.poll(0 if behind else AGAIN)}
            if not self._runs.is_set():
                self._stands.set()
                self._runs.wait()
            if self._stop in ready:
                return
            for lane in self.lanes:
                lane.rx.calls()
                lane.tx.calls()
                self._receive(lane)
            with self._lock:
                self._send()

    def _room(self) -> bool:
        """Whether any packet could be sent now, whichever flow it is of."""
        return all(lane.slots for lane in self.lanes[: self.channels])

    def _receive(self, lane: Lane) -> None:
        """Hand each packet to the network stack."""
        for packet in lane.receive():
            with suppress(OSError):  # the interface may be down
                os.write(self._tap, packet)

    def _send(self) -> None:
        """Offer what the network stack sends, as long as there are buffers."""
        for lane in self.lanes:
            lane.finish()
        lanes = self.lanes[: self.channels]
        while self._room():
            try:
                packet = os.read(self._tap, self._hdr_len + LONGEST)
            except OSError:
                break
            flow = packet[self._hdr_len :][FLOW]
            lanes[zlib.crc32(flow) % len(lanes)].send(packet)
        for lane in self.lanes:
            lane.tx.kick()
