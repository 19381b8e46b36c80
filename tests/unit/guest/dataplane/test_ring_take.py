# SPDX-License-Identifier: Apache-2.0
"""Simple chains, which the receive ring takes at once, and others among them."""

from itertools import cycle

import pytest

from tests.fakes.driver import MIB, Desc
from tests.fakes.packed_driver import PackedDriver
from tests.fakes.pair import RX, Pair
from tests.unit.guest.dataplane.test_ring_rx import delivered, packet
from vhostpci_guest.dataplane.faults import Fault

SIZE = 100
LENGTH = 50
REGION = (0x10000, 2 * MIB)


def warm_up(pair: Pair) -> None:
    """Let so many short packets pass that the worker takes chains at once."""
    for _ in range(33):
        for _ in range(8):
            pair.rx.post(SIZE)
            pair.tap.send(packet(LENGTH))
        pair.settle()
        assert len(pair.rx.collect()) == 8


def post_three(pair: Pair) -> None:
    """Offer simple chains; the first is taken alone, the others at once."""
    warm_up(pair)
    for _ in range(3):
        pair.rx.post(SIZE)


def hand_fourth(pair: Pair, desc: Desc) -> None:
    """Make a descriptor available as it stands."""
    if isinstance(pair.rx, PackedDriver):
        pair.rx.hand_over(desc)
        return
    pair.rx.put_desc(7, desc)
    pair.rx.put_avail(7)
    pair.rx.publish(pair.rx.avail_idx)


def three_arrive_and_then(pair: Pair, fault: Fault) -> None:
    """Check that three packets arrive, and that the fourth meets the fault."""
    for _ in range(4):
        pair.tap.send(packet(LENGTH))
    pair.settle()
    used = pair.rx.collect()
    assert len(used) == 3
    for one in used:
        delivered([one], LENGTH)
    assert pair.status(RX).fault == fault


def without_mergeable(start: int) -> Pair:
    return Pair(REGION, num=8, start=start, mergeable=False)


def test_packets_of_a_burst_come_in_the_order_of_their_chains(start: int) -> None:
    with Pair(num=64, start=start) as pair:
        warm_up(pair)
        heads = [pair.rx.post(2000) for _ in range(64)]
        for length in range(1, 65):
            pair.tap.send(packet(length))
        pair.settle()
        used = pair.rx.collect()
        assert [one.head for one in used] == heads
        for length, one in enumerate(used, start=1):
            delivered([one], length)
        stats = pair.status(RX).stats
        assert stats.packets == 33 * 8 + 64
        assert stats.bytes == 33 * 8 * LENGTH + sum(range(1, 65))


def test_a_buffer_past_its_region_among_good_ones_breaks_the_ring(start: int) -> None:
    end = REGION[0] + REGION[1]
    with without_mergeable(start) as pair:
        post_three(pair)
        hand_fourth(pair, Desc(end - SIZE + 1, SIZE, pair.rx.flags))
        three_arrive_and_then(pair, Fault.ADDRESS)


def test_a_buffer_may_end_where_its_region_does(start: int) -> None:
    end = REGION[0] + REGION[1]
    with without_mergeable(start) as pair:
        post_three(pair)
        pair.rx.offer(Desc(end - SIZE, SIZE))
        for _ in range(4):
            pair.tap.send(packet(SIZE - 12))
        pair.settle()
        used = pair.rx.collect()
        assert len(used) == 4
        delivered(used[3:], SIZE - 12)


def test_a_buffer_before_all_regions_among_good_ones_breaks_the_ring(
    start: int,
) -> None:
    with without_mergeable(start) as pair:
        post_three(pair)
        hand_fourth(pair, Desc(REGION[0] - 1, SIZE, pair.rx.flags))
        three_arrive_and_then(pair, Fault.ADDRESS)


def test_a_buffer_to_read_among_those_to_write_breaks_the_ring(start: int) -> None:
    with without_mergeable(start) as pair:
        post_three(pair)
        address = pair.memory.allocate(SIZE)
        hand_fourth(pair, Desc(address, SIZE, 0))
        three_arrive_and_then(pair, Fault.DIRECTION)


@pytest.mark.split_ring
def test_a_head_past_the_table_among_good_ones_breaks_the_ring(start: int) -> None:
    with without_mergeable(start) as pair:
        post_three(pair)
        pair.rx.put_avail(8)
        pair.rx.publish(pair.rx.avail_idx)
        three_arrive_and_then(pair, Fault.HEAD)


def test_chains_of_pieces_and_simple_ones_take_turns(start: int) -> None:
    with Pair(num=16, start=start) as pair:
        warm_up(pair)
        for _ in range(3):
            for sizes in ([SIZE], [SIZE], [20, 80], [SIZE]):
                pair.rx.post(*sizes)
            for _ in range(4):
                pair.tap.send(packet(LENGTH))
            pair.settle()
            used = pair.rx.collect()
            assert len(used) == 4
            for one in used:
                delivered([one], LENGTH)


def test_buffers_in_several_regions_are_found(start: int) -> None:
    regions = (REGION, (0x40000000, MIB), (0x80000000, MIB))
    with Pair(*regions, num=16, start=start) as pair:
        warm_up(pair)
        for i in range(12):
            base = regions[1 + i % 2][0]
            pair.rx.offer(Desc(base + 4096 * i, SIZE))
            pair.tap.send(packet(LENGTH + i))
        pair.settle()
        used = pair.rx.collect()
        assert len(used) == 12
        for i, one in enumerate(used):
            delivered([one], LENGTH + i)


def test_flag_of_a_chain_that_goes_on_is_seen_among_simple_ones(start: int) -> None:
    with without_mergeable(start) as pair:
        post_three(pair)
        pair.rx.post(12, SIZE)
        for _ in range(4):
            pair.tap.send(packet(LENGTH))
        pair.settle()
        used = pair.rx.collect()
        assert len(used) == 4
        delivered(used[3:], LENGTH)


@pytest.mark.parametrize("length", [1, 12])
def test_a_read_too_short_for_a_packet_ends_a_burst(start: int, length: int) -> None:
    with without_mergeable(start) as pair:
        post_three(pair)
        pair.tap.send(packet(LENGTH))
        pair.tap.send(packet(LENGTH)[:length])
        pair.tap.send(packet(LENGTH))
        pair.settle()
        used = pair.rx.collect()
        assert len(used) == 2
        for one in used:
            delivered([one], LENGTH)
        assert pair.status(RX).stats.drop_runt == 1


def test_a_packet_over_the_longest_ends_a_burst(start: int) -> None:
    with Pair(num=8, start=start, mergeable=False, max_packet=LENGTH) as pair:
        post_three(pair)
        for length in (LENGTH, LENGTH + 1, LENGTH):
            pair.tap.send(packet(length))
        pair.settle()
        used = pair.rx.collect()
        assert len(used) == 2
        for one in used:
            delivered([one], LENGTH)
        assert pair.status(RX).stats.drop_long == 1


def test_a_store_that_is_never_empty_goes_on_at_its_start(start: int) -> None:
    """A long packet has the worker keep chains for another one."""
    with Pair(num=256, start=start) as pair:
        # Not a size that divides the store's: what is stale there has to differ.
        sizes = cycle(range(SIZE, SIZE + 7))
        for _ in range(25):
            while pair.rx.room():
                pair.rx.post(next(sizes))
            for length in [490, *[LENGTH] * 64]:
                pair.tap.send(packet(length))
            pair.settle()
            used = pair.rx.collect()
            delivered(used[:-64], 490)
            for one in used[-64:]:
                delivered([one], LENGTH)
