# SPDX-License-Identifier: Apache-2.0
"""From the TAP to the master's receive queue."""

import socket
import time
from contextlib import suppress

import pytest

from tests.fakes.driver import Desc, Used
from tests.fakes.pair import HDR, RX, Pair
from vhostpci_guest.dataplane.faults import Fault
from vhostpci_shared.metadata import AgentRingState

TAP_HDR = bytes(range(1, 11))  # the kernel writes 10 bytes of any header


def packet(length: int) -> bytes:
    """Make a packet as it comes from the TAP; each byte tells its place."""
    return TAP_HDR + b"??" + bytes(i % 251 for i in range(length))


def delivered(used: list[Used], length: int) -> None:
    """Check that the buffers hold the whole packet, and that num_buffers is right."""
    data = b"".join(u.data for u in used)
    assert data[:10] == TAP_HDR
    assert int.from_bytes(data[10:12], "little") == len(used)
    assert data[12:] == packet(length)[12:]


def post(pair: Pair, count: int, *sizes: int) -> None:
    """Offer `count` chains, each of new buffers of these sizes."""
    for _ in range(count):
        pair.rx.post(*sizes)


def lend(pair: Pair, size: int) -> list[Desc]:
    """Offer 256 buffers, the n-th under head n; return them, to be offered again."""
    buffers = [Desc(pair.memory.allocate(size), size) for _ in range(256)]
    for buffer in buffers:
        pair.rx.offer(buffer)
    return buffers


def receive(pair: Pair, *lengths: int) -> list[Used]:
    """Let packets arrive at the TAP; return the chains that the worker gives back."""
    for length in lengths:
        pair.tap.send(packet(length))
    pair.settle()
    return pair.rx.collect()


def test_a_packet_fills_one_buffer(start: int) -> None:
    with Pair(start=start) as pair:
        for length in range(1, 20):
            head = pair.rx.post(2000)
            (used,) = receive(pair, length)
            assert (used.head, used.len) == (head, 12 + length)
            delivered([used], length)


@pytest.mark.parametrize("size", [1, 5, 11, 12, 13, 100])
def test_a_packet_spreads_over_buffers_of_any_size(start: int, size: int) -> None:
    with Pair(start=start, num=256) as pair:
        post(pair, 200, size)
        for length in (1, 30, 100):
            used = receive(pair, length)
            assert len(used) == -(-(12 + length) // size)
            assert {u.len for u in used[:-1]} <= {size}
            delivered(used, length)


def test_num_buffers_lands_right_in_a_header_of_one_byte_descriptors(
    start: int,
) -> None:
    with Pair(start=start, num=32) as pair:
        pair.rx.post(*[1] * 12, 4)
        pair.rx.post(100)
        used = receive(pair, 50)
        assert [u.len for u in used] == [16, 46]
        delivered(used, 50)


@pytest.mark.parametrize("sizes", [(10, 2), (11, 1), (10, 1, 1), (6, 5, 1)])
def test_num_buffers_lands_right_across_chains(
    start: int, sizes: tuple[int, ...]
) -> None:
    with Pair(start=start) as pair:
        for size in (*sizes, 100):
            pair.rx.post(size)
        delivered(receive(pair, 50), 50)


def test_num_buffers_does_not_run_over_the_end_of_a_buffer(start: int) -> None:
    """The first buffer ends in the middle of num_buffers; memory follows it."""
    with Pair(start=start) as pair:
        addr = pair.memory.allocate(300)
        pair.memory.write(addr, b"#" * 300)
        pair.rx.offer(Desc(addr, 11))
        pair.rx.offer(Desc(addr + 100, 100))
        delivered(receive(pair, 50), 50)
        memory = pair.memory.read(addr, 300)
        assert memory[11:100] + memory[151:] == b"#" * 238


def test_a_packet_that_fills_its_buffers_to_the_last_byte_is_delivered_at_once(
    start: int,
) -> None:
    with Pair(start=start, hold=100) as pair:
        pair.rx.post(40)
        pair.rx.post(22)
        delivered(receive(pair, 50), 50)


@pytest.mark.parametrize("indirect", [False, True])
def test_big_packets_spread_over_many_buffers(start: int, indirect: bool) -> None:
    with Pair(start=start, num=256) as pair:
        for _ in range(120):
            pair.rx.post(900, 600, indirect=indirect)
        for length in (65535, 1, 65535):
            delivered(receive(pair, length), length)
        assert pair.status(RX).stats.spilled == 0


def test_many_packets_pass_while_buffers_come_and_go(start: int) -> None:
    with Pair(start=start, num=64) as pair:
        lengths = [1 + i * 37 % 4000 for i in range(300)]
        free = 0
        for length in lengths:
            while free < 60:
                pair.rx.post(512)
                free += 1
            used = receive(pair, length)
            free -= len(used)
            delivered(used, length)
            if pair.memory._next > (1 << 32) + (3 << 20):
                pair.memory._next = (1 << 32) + (1 << 20)
        stats = pair.status(RX).stats
        assert (stats.packets, stats.bytes) == (len(lengths), sum(lengths))


def test_the_store_of_chains_taken_ahead_never_runs_full(start: int) -> None:
    with Pair(start=start, num=256) as pair:
        buffers = lend(pair, 256)
        # Small and big packets in turn move the store's window at any offset.
        for i in range(1500):
            length = 1 + i * 997 % (50 if i % 3 else 20000)
            used = receive(pair, length)
            delivered(used, length)
            for u in used:
                pair.rx.offer(buffers[u.head])
        assert pair.status(RX).stats.dropped == 0


def test_a_burst_is_given_back_in_batches(start: int) -> None:
    with Pair(start=start, num=256) as pair:
        post(pair, 256, 30)
        for i in range(60):
            pair.tap.send(packet(50 + i % 2))
        pair.settle()
        used = pair.rx.collect()
        for i in range(60):
            delivered(used[3 * i : 3 * i + 3], 50 + i % 2)
        assert pair.status(RX).stats.used_updates == 3


def test_a_full_batch_is_given_back_before_the_next_packet(start: int) -> None:
    with Pair(start=start, num=256) as pair:
        post(pair, 66, 40)
        for _ in range(33):
            pair.tap.send(packet(50))
        assert pair.worker.step() == 33
        # 32 packets fill 64 chains, a batch; the last packet makes the second one.
        assert pair.status(RX).stats.used_updates == 2


@pytest.mark.parametrize("hdr_len", [10, 12])
def test_without_mergeable_buffers_a_packet_takes_one_chain(
    start: int, hdr_len: int
) -> None:
    with Pair(start=start, mergeable=False, hdr_len=hdr_len) as pair:
        pair.rx.post(hdr_len, 100)
        pair.rx.post(hdr_len, 100)
        data = packet(100)
        pair.tap.send(data[:hdr_len] + data[12:])
        pair.settle()
        (used,) = pair.rx.collect()
        assert used.len == hdr_len + 100
        assert used.data == (TAP_HDR + b"\x01\x00")[:hdr_len] + data[12:]


def test_without_mergeable_buffers_a_chain_too_short_loses_the_packet(
    start: int,
) -> None:
    with Pair(start=start, mergeable=False) as pair:
        head = pair.rx.post(12, 100)
        pair.rx.post(12, 2000)
        (used,) = receive(pair, 101, 100)
        assert used.head == head
        delivered([used], 100)
        assert pair.status(RX).stats.drop_no_room == 1


def test_without_mergeable_buffers_a_chain_shorter_than_the_header_comes_back(
    start: int,
) -> None:
    with Pair(start=start, mergeable=False) as pair:
        bad = [pair.rx.post(11), pair.rx.offer(Desc(0, 0))]
        good = pair.rx.post(100)
        used = receive(pair, 50)
        assert [(u.head, u.len) for u in used] == [
            (bad[0], 0),
            (bad[1], 0),
            (good, 62),
        ]
        assert pair.status(RX).stats.bad_chains == 2


def test_empty_chains_come_back_and_lose_no_packet(start: int) -> None:
    with Pair(start=start, num=16) as pair:
        for _ in range(5):
            pair.rx.offer(Desc(0, 0))
        pair.rx.post(100)
        used = receive(pair, 50)
        assert [u.len for u in used] == [0, 0, 0, 0, 0, 62]
        delivered(used[5:], 50)


@pytest.mark.split_ring
def test_a_ring_of_empty_chains_does_not_overrun_the_worker(start: int) -> None:
    with Pair(start=start, num=32768) as pair:
        pair.rx.put_desc(0, Desc(0, 0, 2))
        pair.rx.put_desc(1, Desc(pair.memory.allocate(100), 100, 2))
        for i in range(32768):
            pair.rx.put_avail(int(i % 1000 == 999))
        pair.rx.publish(pair.rx.avail_idx)
        for _ in range(3):
            pair.tap.send(packet(150))  # two of the full ones, 999 between
        pair.settle()
        assert pair.state(RX) == AgentRingState.RUNNING
        assert pair.status(RX).stats.packets == 3
        assert pair.status(RX).index == pair.rx.used_idx()


def test_without_buffers_packets_stay_in_the_tap(start: int) -> None:
    with Pair(start=start) as pair:
        pair.tap.send(packet(10))
        pair.settle()
        assert pair.status(RX).stats.packets == 0
        pair.rx.post(100)
        pair.settle()
        delivered(pair.rx.collect(), 10)
        assert pair.status(RX).stats.no_buffers > 0


def test_a_packet_is_held_until_there_are_buffers_for_its_tail(start: int) -> None:
    with Pair(start=start, num=16, hold=100) as pair:
        pair.rx.post(100)
        pair.rx.post(100)
        pair.tap.send(packet(1000))
        pair.tap.send(packet(5))
        for _ in range(4):
            pair.settle()
            assert pair.rx.collect() == []
            pair.rx.post(250)
        pair.settle()
        used = pair.rx.collect()
        assert [u.len for u in used] == [100, 100, 250, 250, 250, 62]
        delivered(used, 1000)
        stats = pair.status(RX).stats
        assert (stats.packets, stats.spilled, stats.dropped) == (1, 1, 0)
        pair.rx.post(100)
        pair.settle()
        delivered(pair.rx.collect(), 5)


def test_a_header_may_reach_into_what_is_held(start: int) -> None:
    with Pair(start=start, num=16, hold=100) as pair:
        pair.rx.post(5)
        pair.tap.send(packet(30))
        pair.settle()
        pair.rx.post(6)
        pair.settle()
        pair.rx.post(2)
        pair.settle()
        pair.rx.post(40)
        pair.settle()
        used = pair.rx.collect()
        assert [u.len for u in used] == [5, 6, 2, 29]
        delivered(used, 30)


def test_a_packet_that_all_buffers_of_the_ring_cannot_take_is_dropped(
    start: int,
) -> None:
    with Pair(start=start, num=4, hold=100) as pair:
        post(pair, 4, 100)
        delivered(receive(pair, 400, 300), 300)
        assert pair.status(RX).stats.drop_no_room == 1


def test_a_packet_waits_for_the_buffers_that_the_same_pass_gives_back(
    start: int,
) -> None:
    with Pair(start=start, num=4, hold=100) as pair:
        post(pair, 4, 100)
        pair.tap.send(packet(80))
        pair.tap.send(packet(400))  # one buffer more than are left
        pair.settle()
        delivered(pair.rx.collect(), 80)
        pair.rx.post(200)
        pair.settle()
        delivered(pair.rx.collect(), 400)
        assert pair.status(RX).stats.dropped == 0


def test_a_packet_for_which_no_buffers_come_is_dropped_in_time(start: int) -> None:
    # Longer than this thread waits for a processor between two steps.
    with Pair(start=start, num=16, hold=0.3) as pair:
        pair.rx.post(100)
        assert receive(pair, 1000, 50) == []
        time.sleep(0.4)
        pair.settle()
        delivered(pair.rx.collect(), 50)
        assert pair.status(RX).stats.drop_no_room == 1


def test_a_ring_that_stops_drops_what_it_holds_and_counts_it(start: int) -> None:
    with Pair(start=start, num=16, hold=100) as pair:
        pair.rx.post(100)
        pair.tap.send(packet(1000))
        pair.settle()
        assert pair.worker.stop(RX) == pair.base
        assert pair.status(RX).stats.drop_stop == 1


def test_buffers_taken_ahead_are_there_for_a_successor(start: int) -> None:
    with Pair(start=start, num=16) as pair:
        post(pair, 10, 100)
        delivered(receive(pair, 150), 150)
        index = pair.worker.stop(RX)
        assert index == pair.after(2)
        pair.start(RX, base=index)
        used = receive(pair, 700)
        assert [u.head for u in used] == list(range(2, 10))
        delivered(used, 700)


@pytest.mark.parametrize("length", [1501, 65535, 80000])
def test_a_packet_over_the_longest_is_dropped(start: int, length: int) -> None:
    with Pair(start=start, max_packet=1500) as pair:
        post(pair, 8, 2000)
        delivered(receive(pair, length, 1500), 1500)
        assert pair.status(RX).stats.drop_long == 1


@pytest.mark.parametrize("length", [1, 11, 12])
def test_a_read_too_short_for_a_packet_is_dropped(start: int, length: int) -> None:
    with Pair(start=start) as pair:
        pair.rx.post(100)
        pair.tap.send(bytes(length))
        delivered(receive(pair, 1), 1)
        assert pair.status(RX).stats.drop_runt == 1


def test_chains_of_more_pieces_than_a_read_takes_are_used_in_turn(start: int) -> None:
    with Pair(start=start, num=2048, hold=100) as pair:
        pair.rx.post(12, *[1] * 900)
        pair.rx.post(*[1] * 1000)
        used = receive(pair, 1500)
        assert [u.len for u in used] == [912, 600]
        delivered(used, 1500)
        assert pair.status(RX).stats.spilled == 1


@pytest.mark.parametrize("pieces", [22, 23, 24], ids=["one less", "all", "one more"])
def test_a_read_is_offered_as_many_pieces_as_a_system_call_takes(
    start: int, pieces: int
) -> None:
    """1024, of which one is the spill: readv() would refuse one more."""
    with Pair(start=start, num=2048, hold=100) as pair:
        pair.rx.post(12, *[1] * 999)
        pair.rx.post(*[1] * pieces)
        delivered(receive(pair, 999 + pieces), 999 + pieces)
        stats = pair.status(RX).stats
        assert stats.drop_read == 0
        # With one piece more the second chain is not offered to the read.
        assert stats.spilled == (pieces > 23)


def test_chains_of_many_pieces_do_not_overrun_the_store(start: int) -> None:
    with Pair(start=start, num=8192) as pair:
        buffer = pair.memory.allocate(1)
        for _ in range(8):
            pair.rx.offer(*[Desc(buffer, 1)] * 1000)
        for length in (900, 1900, 2900, 800):
            pair.tap.send(packet(length))
        pair.settle()
        assert [u.len for u in pair.rx.collect()] == [912, 1000, 912, 812]
        assert pair.status(RX).stats.drop_no_room == 1  # 2,045 pieces at most
        assert pair.state(RX) == AgentRingState.RUNNING


def test_the_store_makes_room_although_it_is_never_empty(start: int) -> None:
    """A chain beyond its end would lie in the spill, which a long packet fills."""
    with Pair(start=start, num=8192) as pair:
        for _ in range(12):
            pair.rx.post(*[50] * 600)
        for _ in range(5):
            delivered(receive(pair, 100), 100)
        pair.tap.send(packet(65000))
        pair.settle()
        assert pair.status(RX).stats.drop_no_room == 1
        for _ in range(3):
            delivered(receive(pair, 29_900), 29_900)
        assert pair.status(RX).stats.dropped == 1


def test_the_store_makes_room_for_chains_of_many_pieces(start: int) -> None:
    with Pair(start=start, num=2048, hold=100) as pair:
        for _ in range(20):
            pair.rx.post(*[1] * 600)
            pair.tap.send(packet(1000))
            pair.settle()
            pair.rx.post(*[1] * 600)
            pair.settle()
            delivered(pair.rx.collect(), 1000)


def test_a_ring_full_of_tiny_buffers_drops_what_cannot_fit(start: int) -> None:
    with Pair(start=start, num=2048, hold=100) as pair:
        post(pair, 2048, 1)
        used = receive(pair, 1500, 500)
        delivered(used, 500)
        assert pair.status(RX).stats.drop_no_room == 1


@pytest.mark.parametrize("mergeable", [True, False])
@pytest.mark.parametrize("size", [13, 100, 1000])
def test_used_lengths_are_what_the_buffers_hold_at_most(
    start: int, mergeable: bool, size: int
) -> None:
    """A driver that believes more would show its user what lies behind a buffer."""
    with Pair(start=start, num=256, mergeable=mergeable) as pair:
        post(pair, 200, size)
        used = receive(pair, size - 12, size - 11, 3 * size, 1500)
        assert all(one.len <= size for one in used)
        if mergeable:
            assert sum(one.len for one in used) == 5 * size + 1525
        else:
            assert pair.status(RX).stats.drop_no_room >= 3


def test_nothing_behind_the_packet_is_written(start: int) -> None:
    with Pair(start=start) as pair:
        addr = pair.memory.allocate(300)
        pair.memory.write(addr, b"#" * 300)
        pair.rx.offer(Desc(addr + 100, 40), Desc(addr + 200, 40))
        assert receive(pair, 38)[0].len == 50
        memory = pair.memory.read(addr, 300)
        assert memory[:100] + memory[140:200] + memory[210:] == b"#" * 250


def test_a_tap_that_is_gone_breaks_the_ring(start: int) -> None:
    with Pair(start=start) as pair:
        pair.rx.post(100)
        pair.tap.close()
        pair.settle()
        status = pair.status(RX)
        assert (status.state, status.fault) == (AgentRingState.BROKEN, Fault.TAP)
        assert HDR not in pair.memory.read(pair.rx.desc, 1)


def test_small_packets_are_offered_few_buffers_and_big_ones_are_not_lost(
    start: int,
) -> None:
    with Pair(start=start, num=256) as pair:
        buffers = lend(pair, 512)
        # After a while of small ones a big one is a surprise, but only the first.
        small = [1000] * 600
        for length in [*small, 60000, 60000, *small, 60000]:
            used = receive(pair, length)
            delivered(used, length)
            for u in used:
                pair.rx.offer(buffers[u.head])
        stats = pair.status(RX).stats
        assert (stats.spilled, stats.dropped) == (2, 0)


def test_packets_of_one_length_are_offered_all_the_buffers_they_need(
    start: int,
) -> None:
    with Pair(start=start, num=256) as pair:
        # Three buffers are one byte short of a packet with its header.
        buffers = lend(pair, 337)
        for _ in range(600):
            used = receive(pair, 1000)
            delivered(used, 1000)
            for u in used:
                pair.rx.offer(buffers[u.head])
        assert pair.status(RX).stats.spilled == 0


def test_pass_of_long_packets_ends_before_the_other_ring_has_waited_long(
    start: int,
) -> None:
    with Pair(start=start, num=64) as pair:
        # Room for seven of them.
        pair.tap.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 212_992)
        for _ in range(8):
            pair.rx.post(65536)
        sent = 0
        with suppress(BlockingIOError):
            while sent < 8:
                pair.tap.send(HDR + bytes(60_000))
                sent += 1
        assert sent > 5
        assert [pair.worker.step() for _ in range(2)] == [5, sent - 5]
