# SPDX-License-Identifier: Apache-2.0
"""Chains of descriptors: the valid shapes, and those that break the ring."""

from itertools import pairwise

import pytest

from tests.fakes.driver import INDIRECT, MIB, NEXT, WRITE, Desc
from tests.fakes.pair import HDR, RX, TX, Pair
from vhostpci_guest.dataplane.faults import Fault
from vhostpci_shared.metadata import AgentRingState


def broken(pair: Pair) -> Fault:
    """Run the transmit ring into its fault; no part of the chain may have been sent."""
    pair.settle()
    status = pair.status(TX)
    assert status.state == AgentRingState.BROKEN
    assert status.stats.faults == 1
    assert pair.packets() == []
    assert pair.tx.collect() == []
    assert pair.events() == 1
    return status.fault


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("pieces", [1, 2, 8])
def test_a_packet_may_be_in_pieces(start: int, pieces: int, indirect: bool) -> None:
    packet = HDR + bytes(range(200))
    cuts = [len(packet) * i // pieces for i in range(pieces + 1)]
    with Pair(start=start) as pair:
        for _ in range(20):
            head = pair.tx.send(
                *(packet[a:b] for a, b in pairwise(cuts)),
                indirect=indirect,
            )
            pair.settle()
            assert pair.packets() == [packet]
            assert [(u.head, u.len) for u in pair.tx.collect()] == [(head, 0)]


@pytest.mark.split_ring
def test_direct_descriptors_may_end_in_an_indirect_one(start: int) -> None:
    with Pair(start=start) as pair:
        addr, table = pair.memory.allocate(32), pair.memory.allocate(32)
        pair.memory.write(addr, HDR + b"direct indirect!")
        pair.tx.put_table(table, Desc(addr + 19, 4), Desc(addr + 23, 5))
        pair.tx.hand_over(
            Desc(addr, 19, NEXT, 5), *[Desc(0, 0)] * 4, Desc(table, 32, INDIRECT)
        )
        pair.settle()
        assert pair.packets() == [HDR + b"direct indirect!"]


def test_an_indirect_table_need_not_be_aligned(start: int) -> None:
    with Pair(start=start) as pair:
        addr, table = pair.memory.allocate(32), pair.memory.allocate(40) + 5
        pair.memory.write(addr, HDR + b"odd")
        pair.tx.put_table(table, Desc(addr, 12), Desc(addr + 12, 3))
        pair.tx.hand_over(Desc(table, 32, INDIRECT))
        pair.settle()
        assert pair.packets() == [HDR + b"odd"]


def test_the_write_flag_of_a_descriptor_with_a_table_means_nothing(start: int) -> None:
    with Pair(start=start) as pair:
        addr, table = pair.memory.allocate(32), pair.memory.allocate(16)
        pair.memory.write(addr, HDR + b"fine")
        pair.tx.put_table(table, Desc(addr, 16))
        pair.tx.hand_over(Desc(table, 16, INDIRECT | WRITE))
        pair.settle()
        assert pair.packets() == [HDR + b"fine"]


@pytest.mark.split_ring
def test_chains_come_back_in_order_over_the_wrap(start: int) -> None:
    with Pair(start=start, num=8) as pair:
        heads: list[int] = []
        back: list[int] = []
        packets: list[bytes] = []
        for i in range(50):
            for j in range(1 + i % 3):
                heads.append(pair.tx.send(HDR, bytes([i, j])))
            pair.settle()
            packets += pair.packets()
            back += [used.head for used in pair.tx.collect()]
        assert back == heads
        assert [p[12] for p in packets] == sorted(p[12] for p in packets)
        assert pair.worker.stop(TX) == (start + len(heads)) % 2**16


def test_a_queue_of_one_works(start: int) -> None:
    with Pair(start=start, num=1) as pair:
        for i in range(5):
            pair.tx.send(HDR + bytes([i]))
            pair.settle()
            assert len(pair.tx.collect()) == 1
        assert len(pair.packets()) == 5


@pytest.mark.split_ring
def test_the_biggest_queue_works(start: int) -> None:
    with Pair(start=start, num=32768) as pair:
        addr = pair.memory.allocate(64)
        pair.tx.put_desc(32767, Desc(addr, 64))
        for _ in range(32768):
            pair.tx.put_avail(32767)
        pair.tx.publish(pair.tx.avail_idx)
        sent = 0
        while sent < 32768:
            pair.settle()
            sent += len(pair.packets())
        assert pair.tx.used_idx() == (start + 32768) % 2**16


@pytest.mark.split_ring
@pytest.mark.parametrize("ahead", [9, 2**15, 2**16 - 1])
def test_an_avail_idx_out_of_reach_breaks_the_ring(start: int, ahead: int) -> None:
    with Pair(start=start, num=8) as pair:
        pair.tx.publish(start + ahead)
        assert broken(pair) == Fault.AVAIL_IDX


@pytest.mark.split_ring
def test_an_avail_idx_that_goes_back_breaks_the_ring(start: int) -> None:
    with Pair(start=start, num=8, running=False) as pair:
        pair.start(RX)
        for _ in range(3):
            pair.rx.post(100)
        pair.settle()  # all three are in the worker's hands
        pair.rx.publish(start + 2)
        pair.settle()
        status = pair.status(RX)
        assert (status.state, status.fault) == (AgentRingState.BROKEN, Fault.AVAIL_IDX)


@pytest.mark.split_ring
def test_more_chains_than_the_ring_holds_break_it(start: int) -> None:
    with Pair(start=start, num=8, max_packet=65600) as pair:
        for _ in range(8):
            pair.rx.post(100)
        pair.settle()
        pair.rx.publish(start + 9)  # none has been given back
        pair.settle()
        assert pair.status(RX).fault == Fault.AVAIL_IDX


@pytest.mark.split_ring
@pytest.mark.parametrize("head", [8, 2**15, 2**16 - 1])
def test_a_head_past_the_table_breaks_the_ring(start: int, head: int) -> None:
    with Pair(start=start, num=8) as pair:
        pair.tx.put_avail(head)
        pair.tx.publish(pair.tx.avail_idx)
        assert broken(pair) == Fault.HEAD


@pytest.mark.split_ring
@pytest.mark.parametrize("after", [8, 2**16 - 1])
def test_a_next_past_the_table_breaks_the_ring(start: int, after: int) -> None:
    with Pair(start=start, num=8) as pair:
        pair.tx.hand_over(Desc(pair.memory.allocate(64), 64, NEXT, after))
        assert broken(pair) == Fault.NEXT


@pytest.mark.split_ring
@pytest.mark.parametrize("length", [1, 2, 8])
def test_a_loop_breaks_the_ring(start: int, length: int) -> None:
    addr = 0x10000
    loop = [Desc(addr, 1, NEXT, (i + 1) % length) for i in range(length)]
    with Pair(start=start, num=8) as pair:
        pair.tx.hand_over(*loop)
        assert broken(pair) == Fault.LOOP


@pytest.mark.split_ring
def test_a_loop_of_empty_descriptors_breaks_the_ring(start: int) -> None:
    with Pair(start=start, num=8) as pair:
        pair.tx.hand_over(Desc(0, 0, NEXT, 0))
        assert broken(pair) == Fault.LOOP


@pytest.mark.split_ring
def test_a_loop_in_an_indirect_table_breaks_the_ring(start: int) -> None:
    with Pair(start=start, num=8) as pair:
        table = pair.memory.allocate(32)
        pair.memory.write(table, bytes(Desc(0x10000, 1, NEXT, 1)))
        pair.memory.write(table + 16, bytes(Desc(0x10000, 1, NEXT, 0)))
        pair.tx.hand_over(Desc(table, 32, INDIRECT))
        assert broken(pair) == Fault.LOOP


@pytest.mark.split_ring
def test_a_next_past_an_indirect_table_breaks_the_ring(start: int) -> None:
    with Pair(start=start, num=8) as pair:
        table = pair.memory.allocate(64)
        pair.memory.write(table, bytes(Desc(0x10000, 1, NEXT, 2)))
        pair.tx.hand_over(Desc(table, 32, INDIRECT))
        assert broken(pair) == Fault.NEXT


@pytest.mark.parametrize("flags", [WRITE, WRITE | NEXT])
def test_a_buffer_to_write_breaks_the_transmit_ring(start: int, flags: int) -> None:
    with Pair(start=start) as pair:
        addr = pair.memory.allocate(64)
        pair.tx.hand_over(Desc(addr, 12, NEXT, 1), Desc(addr, 12, flags, 2))
        assert broken(pair) == Fault.DIRECTION


@pytest.mark.parametrize("first", [0, WRITE])
def test_a_buffer_to_read_breaks_the_receive_ring(start: int, first: int) -> None:
    with Pair(start=start) as pair:
        addr = pair.memory.allocate(64)
        pair.rx.hand_over(Desc(addr, 64, first | NEXT, 1), Desc(addr, 64))
        pair.tap.send(HDR + b"must not be written")
        pair.settle()
        status = pair.status(RX)
        assert (status.state, status.fault) == (AgentRingState.BROKEN, Fault.DIRECTION)
        assert pair.memory.read(addr, 64) == bytes(64)


def test_indirect_without_the_feature_breaks_the_ring(start: int) -> None:
    with Pair(start=start, indirect=False) as pair:
        pair.tx.send(HDR, b"x", indirect=True)
        assert broken(pair) == Fault.INDIRECT


def test_indirect_with_next_breaks_the_ring(start: int) -> None:
    with Pair(start=start) as pair:
        table = pair.memory.allocate(16)
        pair.tx.hand_over(Desc(table, 16, INDIRECT | NEXT, 1), Desc(0x10000, 12))
        assert broken(pair) == Fault.INDIRECT


@pytest.mark.parametrize("length", [0, 1, 15, 17, 2**32 - 1, 16 * 1024, 2**32 - 16])
def test_an_indirect_table_of_a_wrong_length_breaks_the_ring(
    start: int, length: int
) -> None:
    with Pair(start=start) as pair:
        pair.tx.hand_over(Desc(0x10000, length, INDIRECT))
        assert broken(pair) == Fault.INDIRECT_SIZE


@pytest.mark.parametrize(
    "addr", [0, 0x10000 + (2 << 20) - 16, 0x10000 + (2 << 20) - 31, 2**64 - 16]
)
def test_an_indirect_table_outside_breaks_the_ring(start: int, addr: int) -> None:
    with Pair(start=start) as pair:
        pair.tx.hand_over(Desc(addr, 32, INDIRECT))
        assert broken(pair) == Fault.ADDRESS


def test_an_indirect_table_over_two_regions_breaks_the_ring(start: int) -> None:
    with Pair(start=start) as pair:
        table = 0x10000 + (1 << 20) - 16
        pair.tx.put_table(table, Desc(0x10000, 12), Desc(0x10000, 12))
        pair.tx.hand_over(Desc(table, 32, INDIRECT))
        assert broken(pair) == Fault.ADDRESS


@pytest.mark.split_ring
def test_an_indirect_table_inside_another_breaks_the_ring(start: int) -> None:
    with Pair(start=start) as pair:
        outer, inner = pair.memory.allocate(16), pair.memory.allocate(16)
        pair.memory.write(outer, bytes(Desc(inner, 16, INDIRECT)))
        # The chain has an end, so that a driver that follows it does not hang.
        pair.memory.write(inner, bytes(Desc(0x10000, 12)))
        pair.tx.hand_over(Desc(outer, 16, INDIRECT))
        assert broken(pair) == Fault.NESTED


@pytest.mark.split_ring
def test_the_descriptor_table_as_an_indirect_table_with_another_breaks_the_ring(
    start: int,
) -> None:
    with Pair(start=start) as pair:
        inner = pair.memory.allocate(16)
        pair.memory.write(inner, bytes(Desc(0x10000, 12)))
        pair.tx.put_desc(0, Desc(inner, 16, INDIRECT))
        pair.tx.put_desc(1, Desc(pair.tx.desc, 16 * 8, INDIRECT))
        pair.tx.put_avail(1)
        pair.tx.publish(pair.tx.avail_idx)
        assert broken(pair) == Fault.NESTED


def test_an_indirect_table_inside_itself_breaks_the_ring(start: int) -> None:
    with Pair(start=start) as pair:
        pair.tx.hand_over(Desc(pair.tx.desc, 16 * 8, INDIRECT))
        assert broken(pair) == Fault.NESTED


def test_an_indirect_table_may_be_longer_than_the_queue(start: int) -> None:
    with Pair(start=start, num=2) as pair:
        # The longest chain: one more vector of a system call is for the spill.
        pair.tx.send(HDR, *[b"%d" % (i % 7) for i in range(1022)], indirect=True)
        pair.settle()
        assert pair.packets() == [HDR + b"0123456" * 146]


def test_more_pieces_than_a_system_call_takes_break_the_ring(start: int) -> None:
    with Pair(start=start, num=2048) as pair:
        pair.tx.offer(*[Desc(0x10000, 1)] * 1024)
        assert broken(pair) == Fault.PIECES


@pytest.mark.split_ring
def test_direct_and_indirect_pieces_are_counted_together(start: int) -> None:
    with Pair(start=start, num=8) as pair:
        table = pair.memory.allocate(16 * 1023)
        pair.tx.put_table(table, *[Desc(0x10000, 1)] * 1023)
        pair.tx.hand_over(Desc(0x10000, 12, NEXT, 1), Desc(table, 16 * 1023, INDIRECT))
        assert broken(pair) == Fault.PIECES


@pytest.mark.split_ring
def test_what_came_before_a_broken_chain_is_given_back(start: int) -> None:
    with Pair(start=start) as pair:
        head = pair.tx.send(HDR, b"good")
        pair.tx.put_avail(99)
        pair.tx.publish(pair.tx.avail_idx)
        pair.settle()
        assert pair.packets() == [HDR + b"good"]
        assert [used.head for used in pair.tx.collect()] == [head]
        assert pair.status(TX).fault == Fault.HEAD
        assert pair.worker.stop(TX) == (start + 1) % 2**16


@pytest.mark.split_ring
def test_one_broken_ring_leaves_the_other_running(start: int) -> None:
    with Pair(start=start) as pair:
        pair.tx.put_avail(99)
        pair.tx.publish(pair.tx.avail_idx)
        pair.rx.post(100)
        pair.tap.send(HDR + b"still here")
        pair.settle()
        assert pair.state(TX) == AgentRingState.BROKEN
        assert pair.rx.collect()[0].data[12:] == b"still here"


@pytest.mark.split_ring
def test_a_broken_ring_can_be_started_again(start: int) -> None:
    with Pair(start=start) as pair:
        pair.tx.put_avail(99)
        pair.tx.publish(pair.tx.avail_idx)
        pair.settle()
        pair.restart(TX)
        pair.tx.send(HDR, b"again")
        pair.settle()
        assert pair.packets() == [HDR + b"again"]


@pytest.mark.split_ring
def test_head_of_a_later_chain_is_no_index_into_the_table_yet(
    start: int,
) -> None:
    """Chains are prefetched before it is their turn, when heads are checked."""
    with Pair((0x10000, 2 * MIB), num=8, start=start) as pair:
        # What lies behind the rings is no memory: to read it would end the process.
        pair.memory.regions[0].cut_to(MIB // 2)
        pair.tx.send(HDR, b"good")
        pair.tx.put_avail(2**16 - 1)
        pair.tx.publish(pair.tx.avail_idx)
        pair.settle()
        assert pair.packets() == [HDR + b"good"]
        assert pair.status(TX).fault == Fault.HEAD
