# SPDX-License-Identifier: Apache-2.0
"""Copies of packets for `pcap`: of both rings, bounded, and never waited for."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.fakes.driver import Driver
from tests.fakes.packed_driver import FRESH
from tests.fakes.pair import CAN_CONFINE, HDR, RX, TX, Pair, wait_for
from vhostpci_guest.dataplane import capture
from vhostpci_guest.dataplane.capture import Capture
from vhostpci_guest.dataplane.capture_reader import SLOT, Packet, Reader
from vhostpci_guest.dataplane.faults import RingError
from vhostpci_guest.dataplane.native import c_layout

STARTS = pytest.mark.parametrize(
    "start", [Driver.FRESH, 2**16 - 2, FRESH], ids=["0", "wrap", "packed"]
)


@contextmanager
def captured(pair: Pair, snaplen: int = 65612) -> Iterator[Reader]:
    """Capture what crosses a pair."""
    copies = Capture([pair.worker], snaplen)
    reader = Reader(copies.fds[0], **copies.describe())
    try:
        yield reader
    finally:
        reader.close()
        copies.close()


def seen(packets: list[Packet]) -> list[tuple[int, bytes, int]]:
    return [(one.ring, one.header + one.frame, one.length) for one in packets]


def test_slot_is_laid_out_as_in_c() -> None:
    layout = c_layout("capture_slot")
    assert layout.size == SLOT.size
    values = SLOT.pack(1, 2, 3, 4, 5, 6)
    found = {
        name: int.from_bytes(values[at : at + size], "little")
        for name, (at, size) in layout.members.items()
    }
    assert found == dict(
        zip(
            ("number", "time_ns", "len", "copied", "ring", "hdr_len"),
            range(1, 7),
            strict=True,
        )
    )


@STARTS
@pytest.mark.parametrize("mergeable", [False, True])
def test_packets_of_both_rings_are_copied_with_their_headers(
    start: int, mergeable: bool
) -> None:
    with Pair(start=start, mergeable=mergeable) as pair, captured(pair) as reader:
        header = bytes([1, *range(9), 0, 0])
        pair.tx.send(header, b"in two", b" pieces")
        pair.tx.send(HDR + b"in a table", indirect=True)
        pair.rx.post(100)
        pair.rx.post(60, 40)
        for text in (b"first", b"second"):
            pair.tap.send(HDR + text)
        before = time.time_ns()
        pair.settle()
        packets = list(reader.read())
        count = (1).to_bytes(2, "little")
        assert sorted(seen(packets)) == sorted(
            [
                (TX, header + b"in two pieces", 25),
                (TX, HDR + b"in a table", 22),
                (RX, HDR[:10] + count + b"first", 17),
                (RX, HDR[:10] + count + b"second", 18),
            ]
        )
        assert all(abs(one.time_ns - before) < 60e9 for one in packets)
        assert len(pair.packets()) == len(pair.rx.collect()) == 2


def test_packet_over_several_buffers_is_copied_whole() -> None:
    with Pair() as pair, captured(pair) as reader:
        for _ in range(4):
            pair.rx.post(50)
        data = bytes(range(150))
        pair.tap.send(HDR + data)
        pair.settle()
        (packet,) = reader.read()
        assert packet.frame == data
        assert packet.header[10] == 4


def test_packet_that_is_dropped_is_not_copied() -> None:
    with Pair() as pair, captured(pair) as reader:
        pair.tx.send(b"short")
        pair.settle()
        assert list(reader.read()) == []


@pytest.mark.parametrize("snaplen", [13, 20, 61])
def test_copy_is_cut_and_says_how_long_the_packet_was(snaplen: int) -> None:
    with Pair() as pair, captured(pair, snaplen) as reader:
        pair.tx.send(HDR, bytes(200))
        pair.settle()
        (packet,) = reader.read()
        # Up to the next multiple of eight.
        assert snaplen <= len(packet.header + packet.frame) < snaplen + 8
        assert packet.length == 212


@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_reader_that_is_late_knows_how_many_it_has_missed(
    monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    monkeypatch.setattr(capture, "MOST_SLOTS", slots)
    with Pair() as pair, captured(pair) as reader:
        read = 0
        for total in range(1, 40):
            pair.tx.send(HDR, bytes([total]))
            pair.settle()
            pair.tx.collect()
            pair.packets()
            if total % 13 == 0:
                packets = [one.frame[0] for one in reader.read()]
                read += len(packets)
                # The newest are there, in order, and none twice.
                assert packets == list(range(total - len(packets) + 1, total + 1))
                assert packets
                assert read + reader.lost == total


def test_copy_that_is_overwritten_while_it_is_read_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(capture, "MOST_SLOTS", 2)
    with Pair() as pair, captured(pair) as reader:

        def send(byte: int) -> None:
            pair.tx.send(HDR, bytes([byte]))
            pair.settle()

        def copy(at: int) -> Packet:
            found = real(at)
            monkeypatch.setattr(reader, "_copy", real)
            send(2)
            send(3)
            return found

        real = reader._copy
        monkeypatch.setattr(reader, "_copy", copy)
        send(1)
        assert [one.frame[0] for one in reader.read()] == [2, 3]
        assert reader.lost == 1


def test_nothing_is_copied_after_the_end() -> None:
    with Pair() as pair:
        copies = Capture([pair.worker], 100)
        fd = os.dup(copies.fds[0])
        try:
            reader = Reader(fd, **copies.describe())
        finally:
            os.close(fd)
        copies.close()
        pair.tx.send(HDR, b"later")
        pair.settle()
        assert list(reader.read()) == []
        assert pair.packets() == [HDR + b"later"]
        reader.close()


def test_reader_can_neither_change_nor_cut_the_memory() -> None:
    with Pair() as pair:
        copies = Capture([pair.worker], 100)
        for change in (
            lambda: os.ftruncate(copies.fds[0], 0),
            lambda: os.pwrite(copies.fds[0], b"x", 0),
        ):
            with pytest.raises(PermissionError):
                change()
        copies.close()


@pytest.mark.parametrize(
    ("address", "slots", "size"),
    [(4, 1, 64), (8, 0, 64), (8, 1, 32), (8, 1, 60), (8, 1, 0)],
)
def test_memory_that_does_not_fit_is_refused(
    address: int, slots: int, size: int
) -> None:
    with Pair() as pair, pytest.raises(RingError):
        pair.worker.capture(address, slots, size)


def test_capture_begins_and_ends_while_a_thread_moves_packets() -> None:
    with Pair(threaded=True, confine=CAN_CONFINE) as pair:
        for _ in range(20):
            with captured(pair, 60) as reader:
                pair.tx.send(HDR, b"x")
                pair.tx.kick()
                assert wait_for(pair.tx.collect)
                # A packet is copied before its chain comes back.
                assert [one.frame for one in reader.read()] == [b"x"]
