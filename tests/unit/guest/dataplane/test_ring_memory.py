# SPDX-License-Identifier: Apache-2.0
"""The table of the master's memory regions, and what lies in it."""

import errno

import pytest

from tests.fakes.driver import MIB, Desc
from tests.fakes.pair import HDR, RX, TX, Pair
from vhostpci_guest.dataplane.faults import Fault, RingError
from vhostpci_guest.dataplane.interface import MemRegion, RingConf
from vhostpci_guest.dataplane.native import Worker
from vhostpci_shared.metadata import AgentRingState

FIRST_END = 0x10000 + MIB
SECOND_END = FIRST_END + MIB


def test_regions_may_come_in_any_order(start: int) -> None:
    with Pair(start=start, running=False) as pair:
        pair.worker.set_memory(pair.memory.table()[::-1])
        pair.start(TX)
        pair.tx.send(HDR, b"packet")
        pair.settle()
        assert pair.packets() == [HDR + b"packet"]


@pytest.mark.parametrize(
    "regions",
    [
        [MemRegion(0, 0, 0x1000)],
        [MemRegion(2**64 - 0x1000, 0x1001, 0x1000)],
        [MemRegion(0, 0x1000, 2**64 - 0x800)],
        [MemRegion(0, 0x1000, 0)],
        [MemRegion(0, 0x1001, 0x1000), MemRegion(0x1000, 0x1000, 0x4000)],
        [MemRegion(0x1000, 1, 0x1000), MemRegion(0, 2**64 - 1, 0x4000)],
    ],
    ids=["empty", "guest wraps", "host wraps", "nowhere", "overlap", "swallows"],
)
def test_an_impossible_table_is_refused(start: int, regions: list[MemRegion]) -> None:
    with Pair(start=start, running=False) as pair:
        with pytest.raises(RingError, match="empty, wrap or overlap"):
            pair.worker.set_memory(regions)
        with pytest.raises(RingError, match="one memory region"):
            pair.start(TX)  # nothing is left of the former table


def test_a_region_may_end_where_the_address_space_does(start: int) -> None:
    with Pair((2**64 - MIB, MIB), (1 << 32, 4 * MIB), start=start) as pair:
        pair.memory.write(2**64 - 4, b"last")
        head = pair.memory.allocate(12)
        pair.tx.offer(Desc(head, 12), Desc(2**64 - 4, 4))
        pair.settle()
        assert pair.packets() == [HDR + b"last"]


def test_more_regions_than_the_table_holds_are_refused(start: int) -> None:
    table = [MemRegion(i << 20, MIB, 0x1000) for i in range(513)]
    with Pair(start=start, running=False) as pair:
        pair.worker.set_memory(table[:512])
        with pytest.raises(RingError) as caught:
            pair.worker.set_memory(table)
        assert caught.value.errno == errno.E2BIG


@pytest.mark.parametrize("index", [RX, TX])
def test_the_table_cannot_be_replaced_while_a_ring_runs(start: int, index: int) -> None:
    with Pair(start=start, running=False) as pair:
        pair.start(RX if index == RX else TX)
        with pytest.raises(RingError, match="it is running; stop it first"):
            pair.worker.set_memory([])


def test_a_buffer_may_go_on_in_the_region_next_to_it(start: int) -> None:
    with Pair(start=start) as pair:
        pair.memory.write(FIRST_END - 20, HDR + b"before- -after")
        pair.tx.offer(Desc(FIRST_END - 20, 26))
        pair.settle()
        assert pair.packets() == [HDR + b"before- -after"]
        pair.rx.offer(Desc(FIRST_END - 13, 100))
        pair.tap.send(HDR + b"also across the border")
        pair.settle()
        assert pair.rx.collect()[0].data[12:] == b"also across the border"


@pytest.mark.parametrize(
    ("addr", "length"),
    [
        (SECOND_END - 4, 5),
        (SECOND_END, 1),
        (0x10000 - 1, 2),
        (0, 1),
        (2**64 - 1, 1),
        (2**64 - 1, 2),
        (FIRST_END, 2**32 - 1),
        ((1 << 32) + 4 * MIB - 1, 2),
    ],
    ids=[
        "runs into a hole",
        "in a hole",
        "begins before",
        "zero",
        "last byte",
        "wraps",
        "huge",
        "over the end",
    ],
)
@pytest.mark.parametrize("index", [RX, TX])
@pytest.mark.parametrize("indirect", [False, True])
def test_a_buffer_outside_breaks_the_ring(
    start: int, addr: int, length: int, index: int, indirect: bool
) -> None:
    with Pair(start=start) as pair:
        driver = pair.rx if index == RX else pair.tx
        inside = pair.memory.allocate(64)
        driver.offer(Desc(inside, 64), Desc(addr, length), indirect=indirect)
        pair.settle()
        status = pair.status(RX if index == RX else TX)
        assert (status.state, status.fault) == (AgentRingState.BROKEN, Fault.ADDRESS)
        assert pair.packets() == []


def test_a_buffer_that_wraps_into_a_region_at_zero_breaks_the_ring(start: int) -> None:
    regions = [(0, MIB), (2**64 - MIB, MIB), (1 << 32, 4 * MIB)]
    with Pair(*regions, start=start) as pair:
        pair.tx.offer(Desc(2**64 - 16, 32))
        pair.settle()
        assert pair.status(TX).fault == Fault.ADDRESS


@pytest.mark.parametrize("index", [RX, TX])
@pytest.mark.parametrize("addr", [0, 2**64 - 1, SECOND_END])
def test_an_empty_descriptor_may_point_anywhere(
    start: int, index: int, addr: int
) -> None:
    with Pair(start=start) as pair:
        buffer = pair.memory.allocate(64)
        driver = pair.rx if index == RX else pair.tx
        driver.offer(Desc(addr, 0), Desc(buffer, 64), Desc(addr, 0))
        pair.tap.send(HDR + b"in")
        pair.settle()
        assert pair.state(RX if index == RX else TX) == AgentRingState.RUNNING
        assert len(driver.collect()) == 1


@pytest.mark.split_ring
@pytest.mark.parametrize(
    "addr",
    [SECOND_END, FIRST_END - 16, (1 << 32) + 4 * MIB - 16],
    ids=["in a hole", "goes on in the next region", "over the end"],
)
def test_each_part_of_a_ring_must_lie_in_one_region(start: int, addr: int) -> None:
    with Pair(start=start, running=False) as pair:
        for conf in (
            pair.conf(TX, desc=addr),
            pair.conf(TX, driver=addr),
            pair.conf(TX, device=addr),
        ):
            with pytest.raises(RingError, match="not lie within one memory region"):
                pair.worker.start(TX, conf)
            assert pair.state(TX) == AgentRingState.IDLE


def moved(pair: Pair, part: str, addr: int) -> RingConf:
    """Return the transmit ring with one of its parts elsewhere."""
    return {
        "desc": pair.conf(TX, desc=addr),
        "driver": pair.conf(TX, driver=addr),
        "device": pair.conf(TX, device=addr),
    }[part]


@pytest.mark.packed_ring
@pytest.mark.parametrize("num", [1, 7, 8])
@pytest.mark.parametrize("part", ["desc", "driver", "device"])
def test_each_part_of_a_packed_ring_must_lie_in_one_region(
    start: int, num: int, part: str
) -> None:
    """The descriptors, and each side's word, may end with the region and not after."""
    length = 16 * num if part == "desc" else 4
    over = [SECOND_END - length + 16, SECOND_END - 2, SECOND_END]
    if length > 16:  # it would go on in the next region
        over.append(FIRST_END - 16)
    with Pair(start=start, num=num, running=False) as pair:
        for addr in over:
            with pytest.raises(RingError, match="not lie within one memory region"):
                pair.worker.start(TX, moved(pair, part, addr))
        pair.memory.write(SECOND_END - length, pair.tx.bytes_of_ring()[:length])
        pair.worker.start(TX, moved(pair, part, SECOND_END - length))
        pair.worker.stop(TX)


@pytest.mark.split_ring
def test_a_ring_may_fill_its_region_to_the_last_byte(start: int) -> None:
    driver, device = SECOND_END - (4 + 2 * 8), SECOND_END - (4 + 8 * 8)
    with Pair(start=start, running=False) as pair:
        pair.memory.store(device + 2, 2, start)
        for conf, with_events in (
            (
                pair.conf(TX, driver=driver),
                pair.conf(TX, driver=driver, event_idx=True),
            ),
            (
                pair.conf(TX, device=device),
                pair.conf(TX, device=device, event_idx=True),
            ),
        ):
            pair.worker.start(TX, conf)
            pair.worker.stop(TX)
            # used_event, and avail_event, are two bytes more.
            with pytest.raises(RingError, match="not lie within one memory region"):
                pair.worker.start(TX, with_events)


def test_a_worker_without_memory_starts_no_ring(start: int) -> None:
    with Pair(start=start, running=False) as pair:
        pair.worker.set_memory([])
        with pytest.raises(RingError, match="does not lie within one memory region"):
            pair.start(RX)


def test_a_blocking_tap_is_refused(start: int) -> None:
    with Pair(start=start) as pair:
        pair.tap.setblocking(True)
        with pytest.raises(RingError, match="not a non-blocking TAP queue"):
            Worker(pair.tap.fileno(), pair=start)
