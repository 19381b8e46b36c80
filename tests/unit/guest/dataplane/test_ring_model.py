# SPDX-License-Identifier: Apache-2.0
"""A model of both ends: what goes in comes out, in order, once, whatever is negotiated.

Each seed chooses the format of the rings, their size, the features, and what a driver
may choose: lengths, how a packet lies in its buffers, when it looks, whether it wants
calls.  The rings are stopped and started again at any time, as by a change of memory.
The far side of the TAP is read seldom enough to be full at times.

VHOSTPCI_MODEL_SEEDS is how many seeds there are, and VHOSTPCI_MODEL_PACKETS how many
packets cross in each direction for each, for longer runs.
"""

import os
import random
from collections import deque
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.fakes.driver import Desc
from tests.fakes.packed_driver import FRESH, LAP_END
from tests.fakes.pair import RX, TX, Pair
from vhostpci_guest.dataplane.native import RingIndex
from vhostpci_shared.metadata import AgentRingState

PACKETS = int(os.environ.get("VHOSTPCI_MODEL_PACKETS", "3000"))
SEEDS = int(os.environ.get("VHOSTPCI_MODEL_SEEDS", "16"))
LONGEST = 3000
SLOT = 4096
PIECES = 8
TABLE = 16 * PIECES
"""Bytes behind each slot, for an indirect table."""
MEMORY = 16 << 20

SPLIT = [
    (num, start)
    for num in (2, 4, 8, 32, 128, 256, 1024)
    for start in (0, 2**16 - 3, 12345)
]
PACKED = [(num, start) for num in (1, 2, 3, 10, 128, 300) for start in (FRESH, LAP_END)]


def packet(number: int, length: int, hdr_len: int) -> bytes:
    """Return a packet that says its number, and whose bytes tell a wrong piece."""
    word = number.to_bytes(4, "little")
    data = (word + bytes(i % 251 for i in range(16))) * (length // 20 + 1)
    return bytes(hdr_len) + word + data[: length - 4]


class Ends:
    """A worker with the driver's and the TAP's ends, and what each has sent."""

    def __init__(self, seed: int) -> None:
        # Odd seeds have packed rings.
        self.random = random.Random(seed)
        choose = self.random.choice
        self.mergeable = choose([True, False])
        self.hdr_len = 12 if self.mergeable else choose([10, 12])
        self.indirect = choose([True, False])
        num, start = choose(PACKED if seed % 2 else SPLIT)
        self.pair = Pair(
            (1 << 32, MEMORY),
            num=num,
            start=start,
            event_idx=choose([True, False]),
            indirect=self.indirect,
            in_order=choose([True, False]),
            mergeable=self.mergeable,
            hdr_len=self.hdr_len,
            hold=100,
        )
        slots = min(self.pair.tx.num, 256)
        self.free = {
            index: deque(self.pair.memory.allocate(SLOT + TABLE) for _ in range(slots))
            for index in RingIndex
        }
        # Few buffers must take the longest packet, or it would be dropped.
        self.least = SLOT if slots < 64 or not self.mergeable else 128
        self.where: dict[tuple[int, int], int] = {}
        """The slot of each chain that the driver has offered."""
        self.sent = dict.fromkeys(RingIndex, 0)
        self.got = dict.fromkeys(RingIndex, 0)
        self.lost = 0
        self.parts: list[bytes] = []
        self.missing = 0

    # The driver's end.

    def pieces(self, slot: int, length: int, most: int) -> list[Desc]:
        """Cut `length` bytes at a slot into descriptors at random places."""
        count = self.random.randint(1, most)
        cuts = sorted(self.random.sample(range(1, length), min(count, length) - 1))
        edges = [0, *cuts, length]
        return [Desc(slot + start, end - start) for start, end in pairwise(edges)]

    def offer(self, index: RingIndex, length: int) -> int | None:
        """Offer a chain of so many bytes; return its slot, None if there is no room."""
        driver, free = self.pair.driver(index), self.free[index]
        room = driver.room()
        if not free or not room:
            return None
        slot = free.popleft()
        indirect = self.indirect and self.random.random() < 0.5
        descs = self.pieces(slot, length, PIECES if indirect else min(room, 5))
        table = slot + SLOT if indirect else None
        self.where[index, driver.offer(*descs, table=table)] = slot
        return slot

    def send(self) -> None:
        """The master sends a burst."""
        for _ in range(self.random.randint(1, 40)):
            if self.sent[TX] == PACKETS:
                break
            length = self.random.randint(4, LONGEST)
            data = packet(self.sent[TX], length, self.hdr_len)
            slot = self.offer(TX, len(data))
            if slot is None:
                break
            # After the offer: the worker has no thread, so it has not looked yet.
            self.pair.memory.write(slot, data)
            self.sent[TX] += 1
        self.pair.tx.kick()

    def post(self) -> None:
        """The master posts receive buffers, of any size if they are mergeable."""
        for _ in range(self.random.randint(1, 40)):
            if self.offer(RX, self.random.randint(self.least, SLOT)) is None:
                break
        self.pair.rx.kick()

    def collect(self) -> None:
        """The master looks at what came back."""
        for index in RingIndex:
            driver = self.pair.driver(index)
            driver.ask_for_calls(self.random.random() < 0.5)
            for used in driver.collect():
                self.free[index].append(self.where.pop((index, used.head)))
                if index == RX:
                    self.take_buffer(used.data)
                else:
                    assert used.len == 0

    def take_buffer(self, data: bytes) -> None:
        """Put the buffers of a packet together, by the number in its first one."""
        self.parts.append(data)
        whole = b"".join(self.parts)
        if not self.mergeable:
            self.missing = 1
        elif not self.missing and len(whole) >= 12:
            # The header itself may lie in several buffers.
            self.missing = int.from_bytes(whole[10:12], "little")
        if self.missing == len(self.parts):
            self.arrived(RX, whole)
            self.parts, self.missing = [], 0

    # The TAP's end.

    def feed(self) -> None:
        """The slave sends a burst."""
        for _ in range(self.random.randint(1, 40)):
            if self.sent[RX] == PACKETS:
                break
            length = self.random.randint(4, LONGEST)
            try:
                self.pair.tap.send(packet(self.sent[RX], length, self.hdr_len))
            except BlockingIOError:
                break
            self.sent[RX] += 1

    def drain(self) -> None:
        """The slave takes what has come."""
        for data in self.pair.packets():
            self.arrived(TX, data)

    def arrived(self, index: RingIndex, data: bytes) -> None:
        """Check that a packet is whole, and the next one in order."""
        number = int.from_bytes(data[self.hdr_len :][:4], "little")
        length = len(data) - self.hdr_len
        assert data[self.hdr_len :] == packet(number, length, 0)
        # What was held for its last buffers at a stop is lost, and counted.
        gap = number - self.got[index]
        assert 0 <= gap <= (self.unseen() if index == RX else 0)
        self.lost += gap
        self.got[index] = number + 1

    def unseen(self) -> int:
        """Return how many packets were lost behind the last one that came."""
        return self.pair.status(RX).stats.drop_stop - self.lost

    # Both.

    def interrupt(self) -> None:
        """Stop a ring, and start it again where it stands."""
        index = self.random.choice(list(RingIndex))
        base = self.pair.worker.stop(index)
        self.pair.start(index, base=base)

    def run(self) -> None:
        """Do anything, until all packets have crossed."""
        step = self.pair.worker.step
        doings = [self.send, self.post, self.feed, self.drain, self.collect, step]
        weights = [4, 4, 4, 2, 4, 8]
        for _ in range(1000 * PACKETS):
            self.random.choices(doings, weights)[0]()
            if self.random.random() < 0.01:
                self.interrupt()
            if self.done():
                return
        raise AssertionError(f"sent {self.sent}, and {self.got} came")

    def done(self) -> bool:
        """Whether everything has crossed that was not counted as lost."""
        return (
            self.got[TX] == PACKETS == self.sent[RX]
            and self.got[RX] + self.unseen() == PACKETS
        )


@pytest.fixture(params=range(SEEDS))
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    ends = Ends(request.param)
    with ends.pair:
        yield ends


def test_what_goes_in_comes_out_in_order_and_once(ends: Ends) -> None:
    ends.run()
    for index in RingIndex:
        status = ends.pair.status(index)
        assert status.state == AgentRingState.RUNNING
        assert status.stats.dropped == status.stats.drop_stop
    # Nothing comes twice after the last one.
    ends.pair.settle()
    ends.drain()
    ends.collect()
