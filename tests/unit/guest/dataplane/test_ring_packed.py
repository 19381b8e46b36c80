# SPDX-License-Identifier: Apache-2.0
"""What packed rings alone have: laps, chains without links, one batch descriptor."""

import struct
from itertools import pairwise

import pytest

from tests.fakes.driver import INDIRECT, NEXT, Desc
from tests.fakes.packed_driver import (
    EVENT_DISABLE,
    FRESH,
    Packed,
    PackedDriver,
    advance,
    available,
    used,
)
from tests.fakes.pair import HDR, RX, TX, Pair
from vhostpci_guest.dataplane.faults import Fault, RingError
from vhostpci_guest.dataplane.native import RingIndex
from vhostpci_shared.metadata import AgentRingState

pytestmark = pytest.mark.packed_ring


def driver_of(pair: Pair, index: RingIndex) -> PackedDriver:
    driver = pair.driver(index)
    assert isinstance(driver, PackedDriver)
    return driver


def broken(pair: Pair) -> Fault:
    """Run the transmit ring into its fault; no part of the chain may have been sent."""
    pair.settle()
    status = pair.status(TX)
    assert status.state == AgentRingState.BROKEN
    assert (pair.packets(), pair.tx.collect()) == ([], [])
    return status.fault


@pytest.mark.parametrize("num", [1, 2, 3, 7, 100, 255, 256])
def test_any_size_of_a_ring_works_over_many_laps(start: int, num: int) -> None:
    with Pair(start=start, num=num) as pair:
        heads, back, sent = [], [], 0
        for i in range(3 * num + 5):
            pieces = min(1 + i % 3, num)
            packet = HDR + i.to_bytes(2, "big") * 20
            cuts = [len(packet) * j // pieces for j in range(pieces + 1)]
            heads.append(pair.tx.send(*(packet[a:b] for a, b in pairwise(cuts))))
            sent += pieces
            pair.settle()
            assert pair.packets() == [packet]
            back += [chain.head for chain in pair.tx.collect()]
        assert back == heads
        expected = pair.base
        for _ in range(sent):
            expected = advance(expected, 1, num)
        assert pair.worker.stop(TX) == expected


def test_the_biggest_queue_works() -> None:
    with Pair(start=Packed(0x7FFF), num=32768) as pair:
        pair.rx.post(100)
        pair.rx.post(100)
        for text in (b"one", b"two"):
            pair.tap.send(HDR + text)
        pair.settle()
        assert [chain.data[12:] for chain in pair.rx.collect()] == [b"one", b"two"]
        assert pair.worker.stop(RX) == 0x8001


@pytest.mark.parametrize("index", [8, 9, 2**15 - 1])
def test_a_start_outside_the_ring_is_refused(start: int, index: int) -> None:
    with Pair(start=start, running=False) as pair:
        with pytest.raises(RingError, match="index"):
            pair.start(TX, base=pair.base & 0x8000 | index)
        pair.start(TX)


def test_a_start_with_a_misaligned_position_is_refused(start: int) -> None:
    """Its parts are read and written as words, each at once."""
    with Pair(start=start, running=False) as pair:
        addr = pair.memory.host_addr(pair.memory.allocate(128, 64))
        with pytest.raises(RingError):
            pair.start(TX, position_addr=addr + 4)
        pair.start(TX, position_addr=addr)


def half_done(pair: Pair, at: int, behind: int, size: int) -> int:
    """Leave what a predecessor has that was killed within an update of two chains.

    `at` and `behind` are what its position says.  Returns where that lies.
    """
    second = pair.after(1)
    for where, flags in ((pair.base, available(pair.base)), (second, used(second))):
        desc = struct.pack("<QIHH", 0x10000, 64, 7, flags)
        pair.memory.write(pair.tx.desc + 16 * (where & 0x7FFF), desc)
    position = pair.memory.allocate(64, 64)
    ring = (pair.tx.desc, pair.tx.avail, pair.tx.used, size)
    undo = 1 << 32 | 20
    words = struct.pack("<QQQQIIQ", 5, *ring, at | behind << 16, undo)
    pair.memory.write(position, words)
    return pair.memory.host_addr(position)


@pytest.mark.parametrize(
    ("at", "behind", "size", "undone"),
    [(0, 2, 8, True), (0, 2, 9, False), (1, 3, 8, False), (0, 9, 8, False)],
    ids=["this ring", "another ring", "elsewhere in it", "more than a lap"],
)
def test_what_a_predecessor_left_half_done_is_undone_where_it_was(
    start: int, at: int, behind: int, size: int, undone: bool
) -> None:
    with Pair(start=start, num=8, running=False) as pair:
        addr = half_done(pair, pair.after(at), pair.after(behind), size)
        pair.start(TX, position_addr=addr, origin=5)
        second = pair.after(1)
        desc = pair.tx.desc + 16 * (second & 0x7FFF)
        flags = (available if undone else used)(second)
        assert pair.memory.load(desc + 14, 2) == flags
        assert pair.memory.load(desc + 8, 4) == (20 if undone else 64)


def test_a_start_where_a_descriptor_is_used_is_refused(start: int) -> None:
    """A device that goes on there would wait for a whole lap."""
    with Pair(start=start, running=False) as pair:
        driver_of(pair, TX).put_flags(pair.base, used(pair.base))
        with pytest.raises(RingError, match="used index or its session"):
            pair.start(TX)


def test_a_chain_may_fill_the_ring_but_not_more(start: int) -> None:
    address = 0x10000
    with Pair(start=start, num=8) as pair:
        pair.tx.offer(*[Desc(address, 2)] * 8)
        pair.settle()
        assert pair.packets() == [bytes(16)]
        assert len(pair.tx.collect()) == 1
        pair.tx.hand_over(*[Desc(address, 2, NEXT)] * 8)
        assert broken(pair) == Fault.LOOP


def test_a_chain_that_goes_on_in_what_we_hold_breaks_the_ring(start: int) -> None:
    with Pair(start=start, num=8) as pair:
        for _ in range(7):
            pair.rx.post(100)
        pair.settle()  # seven descriptors are in the worker's hands
        pair.rx.hand_over(Desc(0x10000, 100, pair.rx.flags | NEXT))
        pair.settle()
        assert pair.status(RX).fault == Fault.LOOP


def test_a_chain_offered_behind_a_full_ring_breaks_it(start: int) -> None:
    with Pair(start=start, num=8) as pair:
        for _ in range(8):
            pair.rx.post(100)
        pair.settle()
        pair.rx.hand_over(Desc(0x10000, 100, pair.rx.flags))
        pair.settle()
        assert pair.state(RX) == AgentRingState.FENCED or (
            pair.status(RX).fault == Fault.LOOP
        )


@pytest.mark.parametrize("ident", [8, 2**15, 2**16 - 1])
def test_the_id_of_a_chain_is_only_given_back(start: int, ident: int) -> None:
    with Pair(start=start, num=8) as pair:
        pair.tx.hand_over(Desc(0x10000, 20, NEXT, 5), Desc(0x10000, 20, 0, ident))
        pair.settle()
        assert len(pair.packets()) == 1
        at = pair.tx.desc + 16 * (pair.base & 0x7FFF)
        assert pair.memory.load(at + 12, 2) == ident


def test_a_table_behind_another_descriptor_breaks_the_ring(start: int) -> None:
    with Pair(start=start) as pair:
        table = pair.memory.allocate(16)
        pair.tx.put_table(table, Desc(0x10000, 20))
        pair.tx.hand_over(Desc(0x10000, 20, NEXT), Desc(table, 16, INDIRECT))
        assert broken(pair) == Fault.INDIRECT


def test_a_table_in_a_table_breaks_the_ring(start: int) -> None:
    with Pair(start=start) as pair:
        table = pair.memory.allocate(32)
        pair.tx.put_table(table, Desc(0x10000, 20), Desc(table, 16, INDIRECT))
        pair.tx.hand_over(Desc(table, 32, INDIRECT))
        assert broken(pair) == Fault.NESTED


def test_next_in_a_table_means_nothing(start: int) -> None:
    with Pair(start=start) as pair:
        table = pair.memory.allocate(32)
        pair.tx.put_table(table, Desc(0x10000, 10), Desc(0x10000, 10, NEXT))
        pair.tx.hand_over(Desc(table, 32, INDIRECT))
        pair.settle()
        assert pair.packets() == [bytes(20)]


def test_with_in_order_one_descriptor_is_written_for_a_batch(start: int) -> None:
    with Pair(start=start, num=16, in_order=True) as pair:
        heads = [pair.tx.send(HDR, b"one", b"piece")]
        heads += [pair.tx.send(HDR + data) for data in (b"two", b"three", b"four")]
        before = [driver_of(pair, TX).flags_at(pair.after(i)) for i in range(1, 6)]
        pair.settle()
        assert [
            driver_of(pair, TX).flags_at(pair.after(i)) for i in range(1, 6)
        ] == before
        assert [chain.head for chain in pair.tx.collect()] == heads
        assert pair.worker.stop(TX) == pair.after(6)


def test_a_call_comes_when_the_descriptor_asked_for_is_used(start: int) -> None:
    with Pair(start=start, event_idx=True) as pair:
        driver = driver_of(pair, TX)
        driver.send(HDR + b"x")
        pair.settle()
        driver.collect()
        driver.calls()
        driver.ask_for_call_at(pair.after(3))
        calls = []
        for _ in range(5):
            driver.send(HDR + b"x")
            pair.settle()
            driver.collect()
            calls.append(driver.calls())
        assert calls == [0, 0, 1, 0, 0]


def test_the_first_call_of_a_ring_is_sent_unless_calls_are_off(start: int) -> None:
    """A predecessor may have used descriptors, and ended before it called."""
    for off in (False, True):
        with Pair(start=start, event_idx=True) as pair:
            driver_of(pair, TX).ask_for_call_at(pair.after(5))
            if off:
                pair.memory.store(pair.tx.avail, 4, EVENT_DISABLE << 16)
            pair.tx.send(HDR + b"x")
            pair.settle()
            assert pair.tx.calls() == (not off)


@pytest.mark.parametrize("position", [0, 0x7FFF, 0x8000, 0xFFFF])
def test_a_call_asked_for_anywhere_harms_nothing(start: int, position: int) -> None:
    with Pair(start=start, num=3, event_idx=True) as pair:
        for _ in range(20):
            driver_of(pair, TX).ask_for_call_at(position)
            pair.tx.send(HDR + b"x")
            pair.settle()
            assert len(pair.tx.collect()) == 1


def test_used_descriptors_say_whether_they_were_written(start: int) -> None:
    with Pair(start=start) as pair:
        pair.rx.post(100)
        pair.tap.send(HDR + b"x")
        pair.tx.send(HDR + b"x")
        pair.settle()
        assert (
            driver_of(pair, RX).flags_at(pair.base) == used(pair.base) | pair.rx.flags
        )
        assert driver_of(pair, TX).flags_at(pair.base) == used(pair.base)


@pytest.mark.parametrize("index", [RX, TX], ids=["rx", "tx"])
def test_a_ring_whose_next_descriptor_was_taken_away_is_fenced(
    start: int, index: RingIndex
) -> None:
    """What we have taken must still be there when it is used."""
    with Pair(start=start, num=4, hold=100) as pair:
        driver = driver_of(pair, index)
        pair.rx.post(100)
        pair.settle()
        if index == RX:
            driver_of(pair, RX).put_flags(
                pair.base, 0 if pair.base & 0x8000 else 0x8080
            )
            pair.tap.send(HDR + b"x")
        else:
            driver.move_used(0)
        pair.settle()
        status = pair.status(index)
        assert (status.state, status.fault) == (
            AgentRingState.FENCED,
            Fault.USED_MOVED,
        )


def test_a_descriptor_that_another_back_end_used_is_not_taken(start: int) -> None:
    with Pair(start=start, num=4) as pair:
        pair.rx.post(100)
        pair.settle()  # which the worker has taken
        driver_of(pair, RX).put_flags(pair.after(1), used(pair.after(1)))
        pair.tap.send(HDR + b"x")
        pair.settle()
        assert len(pair.rx.collect()) == 1
        assert pair.status(RX).fault == Fault.USED_MOVED


def test_short_ring_is_not_read_behind_its_end() -> None:
    """The ring is prefetched some descriptors ahead, which may be more than it has."""
    size = 1 << 21
    with Pair((0x10000, size), num=2, start=FRESH, running=False) as pair:
        # What lies behind the ring is no memory: to read it would end the process.
        pair.memory.regions[0].cut_to(size // 2)
        pair.tx.desc = 0x10000 + size // 2 - 2 * 16
        pair.start(TX)
        pair.tx.send(HDR, b"good")
        pair.settle()
        assert pair.packets() == [HDR + b"good"]
