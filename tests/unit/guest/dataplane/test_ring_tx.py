# SPDX-License-Identifier: Apache-2.0
"""From the master's transmit queue to the TAP."""

import os
import socket
from contextlib import ExitStack

import pytest

from tests.fakes.driver import Desc
from tests.fakes.pair import HDR, TX, Pair
from vhostpci_guest.dataplane.faults import Fault
from vhostpci_shared.metadata import AgentRingState


@pytest.mark.parametrize("hdr_len", [10, 12])
def test_header_and_packet_pass_as_they_are(start: int, hdr_len: int) -> None:
    packet = bytes(range(1, hdr_len + 1)) + b"packet"
    with Pair(start=start, hdr_len=hdr_len, mergeable=False) as pair:
        pair.tx.send(packet)
        pair.tx.send(packet[:hdr_len], packet[hdr_len:])
        pair.settle()
        assert pair.packets() == [packet, packet]
        stats = pair.status(TX).stats
        assert (stats.packets, stats.bytes, stats.dropped) == (2, 12, 0)


def test_a_header_in_twelve_descriptors_of_one_byte_passes(start: int) -> None:
    packet = bytes(range(12)) + b"packet"
    with Pair(start=start, num=16) as pair:
        pair.tx.send(*(packet[i : i + 1] for i in range(12)), packet[12:])
        pair.settle()
        assert pair.packets() == [packet]


@pytest.mark.parametrize("length", [0, 1, 9, 10, 11])
def test_a_chain_shorter_than_the_header_is_dropped(start: int, length: int) -> None:
    with Pair(start=start) as pair:
        addr = pair.memory.allocate(64)
        bad = pair.tx.offer(Desc(addr, length))
        good = pair.tx.send(HDR, b"next")
        pair.settle()
        assert pair.packets() == [HDR + b"next"]
        assert [(u.head, u.len) for u in pair.tx.collect()] == [(bad, 0), (good, 0)]
        assert pair.status(TX).stats.drop_bad == 1


def test_a_chain_of_just_the_header_goes_to_the_tap(start: int) -> None:
    # Whether that is a packet is the kernel's decision: a TAP says EINVAL.
    with Pair(start=start) as pair:
        pair.tx.send(HDR)
        pair.settle()
        assert pair.packets() == [HDR]


@pytest.mark.parametrize(("length", "sent"), [(1500, 1), (1501, 0), (2**22, 0)])
def test_a_packet_over_the_longest_is_dropped(
    start: int, length: int, sent: int
) -> None:
    with Pair(start=start, max_packet=1500) as pair:
        pair.tx.offer(Desc(1 << 32, 12), Desc(1 << 32, length))
        pair.settle()
        assert len(pair.packets()) == sent
        assert pair.status(TX).stats.drop_bad == 1 - sent
        assert pair.state(TX) == AgentRingState.RUNNING
        assert len(pair.tx.collect()) == 1


def test_lengths_that_add_up_to_more_than_32_bits_are_dropped(start: int) -> None:
    regions = [(1 << 32, 32 << 20)]
    with Pair(*regions, start=start) as pair:
        # 2^32 + 64: in 32 bits, a fine packet.
        pieces = [Desc(1 << 32, 16 << 20)] * 256
        pair.tx.offer(*pieces, Desc(1 << 32, 64), indirect=True)
        pair.tx.send(HDR + b"next")
        pair.settle()
        assert pair.status(TX).stats.drop_bad == 1
        assert pair.packets() == [HDR + b"next"]
        assert pair.status(TX).index == pair.after(2)


def test_a_full_tap_loses_nothing(start: int) -> None:
    with Pair(start=start, num=512) as pair:
        for i in range(200):
            pair.tx.send(HDR, i.to_bytes(2, "big") + bytes(4000))
        got = []
        for _ in range(100):
            pair.settle()
            got += pair.packets()
        assert [int.from_bytes(p[12:14], "big") for p in got] == list(range(200))
        stats = pair.status(TX).stats
        assert stats.tap_full > 0
        assert (stats.packets, stats.dropped) == (200, 0)
        assert len(pair.tx.collect()) == 200


def test_a_chain_that_waits_for_the_tap_is_not_read_again(start: int) -> None:
    with Pair(start=start, num=256) as pair:
        heads = [pair.tx.send(HDR, bytes(4000)) for _ in range(100)]
        pair.settle()
        waiting = heads[len(pair.tx.collect())]
        pair.tx.put_desc(waiting, Desc(0, 4000))  # the master changes its mind
        got = len(pair.packets())
        while got < 100:
            pair.settle()
            got += len(pair.packets())
            assert pair.state(TX) == AgentRingState.RUNNING


def test_a_stop_while_the_tap_is_full_leaves_the_rest_to_a_successor(
    start: int,
) -> None:
    with Pair(start=start, num=512) as pair:
        for i in range(200):
            pair.tx.send(HDR + i.to_bytes(2, "big") + bytes(4000))
        pair.settle()
        index = pair.worker.stop(TX)
        got = pair.packets()
        assert index == pair.after(len(got))
        pair.start(TX, base=index)
        while len(got) < 200:
            pair.settle()
            got += pair.packets()
        assert [int.from_bytes(p[12:14], "big") for p in got] == list(range(200))


def test_what_the_tap_refuses_is_dropped_and_the_rest_goes_on(start: int) -> None:
    with Pair(start=start) as pair:
        pair.tx.send(HDR, bytes(65000))  # EMSGSIZE with so small a buffer
        pair.tx.send(HDR, b"small")
        pair.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        pair.settle()
        assert pair.packets() == [HDR + b"small"]
        assert len(pair.tx.collect()) == 2
        assert pair.status(TX).stats.drop_refused == 1


def test_a_tap_that_is_gone_breaks_the_ring(start: int) -> None:
    with Pair(start=start) as pair:
        pair.tap.close()
        pair.tx.send(HDR, b"no TAP")
        pair.settle()
        status = pair.status(TX)
        assert (status.state, status.fault) == (AgentRingState.BROKEN, Fault.TAP)
        assert "Broken pipe" in status.reason
        assert pair.tx.collect() == []


def test_pass_of_long_packets_ends_before_the_other_ring_has_waited_long(
    start: int,
) -> None:
    """64 packets of 64 KiB would take half a millisecond."""
    with ExitStack() as stack:
        sink = os.open("/dev/null", os.O_WRONLY | os.O_NONBLOCK)
        stack.callback(os.close, sink)
        pair = stack.enter_context(
            Pair(start=start, num=64, running=False, tap_fd=sink)
        )
        buffer = Desc(pair.memory.allocate(65536), 65536)
        pair.start(TX)
        for _ in range(20):
            pair.tx.offer(buffer)
        assert [pair.worker.step() for _ in range(5)] == [5, 5, 5, 5, 0]
        assert pair.status(TX).stats.used_updates == 4


def test_chains_of_many_vectors_share_no_batch(start: int) -> None:
    """Vectors of one batch are bounded; a chain alone may have 1,023."""
    with Pair(start=start, num=8) as pair:
        byte = Desc(pair.memory.allocate(1), 1)
        for _ in range(6):
            pair.tx.offer(*[byte] * 1023, indirect=True)
        pair.settle()
        assert [len(packet) for packet in pair.packets()] == [1023] * 6
        assert len(pair.tx.collect()) == 6


def test_pass_handles_no_more_than_a_batch_with_what_it_had_in_hand(
    start: int,
) -> None:
    with Pair(start=start, num=512) as pair:
        pair.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        for i in range(200):
            pair.tx.send(HDR, i.to_bytes(2, "big"))
        pair.settle()  # the TAP is full, and some chains are in hand
        rest = 200 - len(pair.packets())
        pair.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
        assert [pair.worker.step() for _ in range(4)] == [64, 64, rest - 128, 0]


def test_pass_of_short_packets_is_no_longer_than_a_batch(start: int) -> None:
    """After a short one they are taken several at once, where they are simple."""
    with Pair(start=start, num=256) as pair:
        buffer = pair.memory.allocate(64)
        pair.memory.write(buffer, HDR + b"short")
        simple = Desc(buffer, len(HDR) + 5)
        # One that is not simple, so that the others do not add up to a batch.
        for pieces in ([simple], [Desc(buffer, 12), Desc(buffer + 12, 5)]):
            pair.tx.offer(*pieces)
            pair.settle()
        pair.tx.offer(Desc(buffer, 12), Desc(buffer + 12, 5))
        for _ in range(99):
            pair.tx.offer(simple)
        assert [pair.worker.step() for _ in range(3)] == [64, 36, 0]
        assert pair.packets() == [HDR + b"short"] * 102
        assert len(pair.tx.collect()) == 102


def test_what_comes_before_a_broken_chain_is_sent(start: int) -> None:
    with Pair(start=start) as pair:
        heads = [pair.tx.send(HDR, bytes([i])) for i in range(3)]
        pair.tx.offer(Desc(0, 64))
        pair.settle()
        assert pair.packets() == [HDR + bytes([i]) for i in range(3)]
        assert [used.head for used in pair.tx.collect()] == heads
        assert pair.status(TX).fault is Fault.ADDRESS


def test_dropped_chain_keeps_its_place_between_two_that_are_sent(start: int) -> None:
    with Pair(start=start, max_packet=1500) as pair:
        heads = [
            pair.tx.send(HDR, b"first"),
            pair.tx.send(HDR, bytes(1501)),
            pair.tx.send(HDR, b"last"),
        ]
        pair.settle()
        assert pair.packets() == [HDR + b"first", HDR + b"last"]
        assert [used.head for used in pair.tx.collect()] == heads
        assert pair.status(TX).stats.drop_bad == 1
