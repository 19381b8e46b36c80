# SPDX-License-Identifier: Apache-2.0
"""UDP packets with GSO for a TAP that does not know them: the worker segments them."""

import random
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.fakes.driver import Desc
from tests.fakes.packed_driver import FRESH
from tests.fakes.pair import TX, Pair
from tests.fakes.udp import IPV4, IPV6, datagram, finish, gso_packet
from vhostpci_shared.metadata import AgentRingState

both = pytest.mark.parametrize("ip_type", [IPV4, IPV6], ids=["IPv4", "IPv6"])


def data(length: int) -> bytes:
    """Return bytes of which no two nearby 16-bit words are the same."""
    return b"".join(struct.pack("!H", 7 * i % 65521) for i in range(-(-length // 2)))[
        :length
    ]


def pair_with(**options: int) -> Pair:
    """Return a pair whose transmit ring segments UDP packets."""
    pair = Pair(num=256, running=False, **options)  # type: ignore[arg-type]
    pair.start(TX, segment_udp=True)
    return pair


@pytest.fixture
def pair() -> Iterator[Pair]:
    with pair_with() as pair:
        yield pair


def cut(whole: bytes, size: int) -> list[bytes]:
    return [whole[i : i + size] for i in range(0, len(whole), size)]


@both
@pytest.mark.parametrize("tags", [0, 1, 2])
@pytest.mark.parametrize(
    ("length", "size"), [(3000, 1000), (3001, 1000), (999, 1000), (128, 1), (2, 1472)]
)
def test_segments_are_datagrams_of_the_size_asked_for(
    pair: Pair, ip_type: int, tags: int, length: int, size: int
) -> None:
    whole = data(length)
    header, frame = gso_packet(whole, size, ip_type, tags=tags, ident=65535)
    pair.tx.send(header, frame)
    pair.settle()
    assert [finish(packet) for packet in pair.packets()] == [
        datagram(part, ip_type, tags=tags, ident=(65535 + i) % 2**16)
        for i, part in enumerate(cut(whole, size))
    ]
    assert [used.len for used in pair.tx.collect()] == [0]
    stats = pair.status(TX).stats
    assert (stats.packets, stats.bytes, stats.segmented) == (1, len(frame), 1)


@both
def test_packet_may_lie_in_the_buffers_in_any_way(pair: Pair, ip_type: int) -> None:
    whole = data(900)
    header, frame = gso_packet(whole, 300, ip_type)
    packet = header + frame
    for step in (1, 3, 11, 50, 64, 299, 300, 2000):
        pair.tx.send(*cut(packet, step), indirect=True)
        pair.settle()
        got = [finish(one) for one in pair.packets()]
        assert got == [
            datagram(part, ip_type, ident=i) for i, part in enumerate(cut(whole, 300))
        ]
        pair.tx.collect()


def test_options_of_ipv4_are_in_each_segment(pair: Pair) -> None:
    whole, options = data(2500), b"\x07\x27\x04" + bytes(37)
    pair.tx.send(*gso_packet(whole, 1000, options=options))
    pair.settle()
    assert [finish(packet) for packet in pair.packets()] == [
        datagram(part, ident=i, options=options)
        for i, part in enumerate(cut(whole, 1000))
    ]


def test_legacy_header_is_ten_bytes_in_each_segment() -> None:
    with pair_with(hdr_len=10, mergeable=False) as pair:
        header, frame = gso_packet(data(250), 100)
        pair.tx.send(header[:10], frame)
        pair.settle()
        parts = enumerate(cut(data(250), 100))
        assert [finish(packet, 10) for packet in pair.packets()] == [
            datagram(part, ident=i) for i, part in parts
        ]


@pytest.mark.parametrize("gso_type", [0, 1, 3, 4, 0x81])
def test_packets_of_other_kinds_pass_as_they_are(pair: Pair, gso_type: int) -> None:
    header, frame = gso_packet(data(500), 100)
    packet = header[:1] + bytes([gso_type]) + header[2:] + frame
    pair.tx.send(packet)
    pair.settle()
    assert pair.packets() == [packet]
    assert pair.status(TX).stats.segmented == 0


def test_packet_passes_as_it_is_where_the_tap_knows_it() -> None:
    with Pair(num=16) as pair:
        packet = b"".join(gso_packet(data(500), 100))
        pair.tx.send(packet)
        pair.settle()
        assert pair.packets() == [packet]


V4, V6 = (b"".join(gso_packet(data(500), 100, kind)) for kind in (IPV4, IPV6))
AT = 12 + 14  # where the IP header begins


def long_headers(length: int) -> bytes:
    """Return a packet with so many bytes from Ethernet to UDP: IPv6 extensions."""
    _, frame = gso_packet(data(300), 100, IPV6)
    header = struct.pack("<BBHHHHH", 1, 5, length, 100, length - 8, 6, 0)
    return header + frame[:54] + bytes(length - 62) + frame[54:]


def changed(packet: bytes, at: int, *values: int) -> bytes:
    return packet[:at] + bytes(values) + packet[at + len(values) :]


@pytest.mark.parametrize(
    "packet",
    [
        changed(V4, 0, 0),  # no checksum asked for
        changed(V4, 4, 0, 0),  # segments of no bytes
        changed(V4, 4, 3, 0),  # 167 segments
        changed(V4, 6, 0, 0),  # UDP where Ethernet begins
        changed(V4, 6, 33, 0),
        changed(V4, 6, 35, 0),
        changed(V4, 6, 0xF9, 0),  # headers of 257 bytes
        changed(V4, 6, 0xFF, 0xFF),
        changed(V4, 8, 16, 0),  # the checksum of TCP
        changed(V4, AT - 2, 0x88, 0xB5),  # not IP
        changed(V4, AT - 2, 0x86, 0xDD),  # IPv6, it says
        changed(V4, AT, 0x55),
        changed(V4, AT, 0x44),  # a header of 16 bytes
        changed(V4, AT, 0x4F),  # and of 60
        changed(V4, AT + 6, 0x20),  # more fragments
        changed(V4, AT + 7, 1),  # a fragment
        changed(V4, AT + 9, 6),  # TCP
        changed(V6, AT, 0x45),
        changed(V6, 6, 53, 0),
        changed(changed(V4, 6, 30, 0), AT, 0x44),  # the same, UDP behind it
        V4[: AT + 20 + 8],  # headers only
        V4[: AT + 20 + 7],
        long_headers(257),
        V4[:12],
        V4[:12] + b"\x81\0\0\5" * 200,  # tags only
        b"".join(gso_packet(data(500), 100, tags=3)),
    ],
)
def test_malformed_packet_is_refused_and_the_next_one_passes(
    pair: Pair, packet: bytes
) -> None:
    pair.tx.send(packet)
    pair.tx.send(V4)
    pair.settle()
    assert len(pair.packets()) == 5
    assert len(pair.tx.collect()) == 2
    stats = pair.status(TX).stats
    assert (stats.packets, stats.drop_refused) == (1, 1)
    assert pair.state(TX) == AgentRingState.RUNNING


@pytest.mark.parametrize(("length", "sent"), [(65507, 1), (65508, 0)])
def test_datagram_is_as_long_as_its_ip_header_can_say(
    pair: Pair, length: int, sent: int
) -> None:
    header, frame = gso_packet(bytes(1000), 65535)
    pair.tx.send(header, frame[:42], bytes(length))
    pair.settle()
    assert [len(packet) for packet in pair.packets()] == [12 + 42 + length] * sent
    assert pair.status(TX).stats.drop_refused == 1 - sent


def test_longest_headers_that_are_taken(pair: Pair) -> None:
    pair.tx.send(long_headers(256))
    pair.settle()
    got = [packet[12:] for packet in pair.packets()]
    assert [len(one) for one in got] == [256 + 100] * 3
    payload = [struct.unpack("!H", one[18:20])[0] for one in got]
    assert payload == [256 - 54 + 100] * 3
    assert b"".join(one[256:] for one in got) == data(300)


def test_segments_that_a_full_tap_does_not_take_wait(pair: Pair) -> None:
    whole = data(50_000)
    for _ in range(20):
        pair.tx.send(*gso_packet(whole, 1000), indirect=True)
    got: list[bytes] = []
    for _ in range(1000):
        pair.settle()
        some = pair.packets()
        if not some:
            break
        got += some
    expected = [datagram(one, ident=i) for i, one in enumerate(cut(whole, 1000))]
    assert [finish(one) for one in got] == expected * 20
    stats = pair.status(TX).stats
    assert stats.tap_full > 0
    assert (stats.packets, stats.segmented, stats.dropped) == (20, 20, 0)


@pytest.mark.parametrize("start", [0, FRESH], ids=["split", "packed"])
def test_headers_that_change_between_two_segments_change_nothing(start: int) -> None:
    """They are read once; the data may change until the kernel has copied it."""
    whole = data(50_000)
    header, frame = gso_packet(whole, 1000)
    with pair_with(start=start) as pair:
        addr = pair.memory.allocate(len(header + frame))
        pair.memory.write(addr, header + frame)
        pair.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        pair.tx.offer(Desc(addr, len(header + frame)))
        pair.settle()  # the TAP is full in the middle of the packet
        got = pair.packets()
        assert 0 < len(got) < 50
        pair.memory.write(addr, b"\xff" * (len(header) + 42))
        while len(got) < 50:
            pair.settle()
            got += pair.packets()
        assert [finish(one) for one in got] == [
            datagram(one, ident=i) for i, one in enumerate(cut(whole, 1000))
        ]
        assert len(pair.tx.collect()) == 1


def test_ring_that_stops_within_a_packet_starts_with_all_of_it(pair: Pair) -> None:
    """The master's chain was not completed, so a successor sends it as a whole."""
    whole = data(50_000)
    for _ in range(20):
        pair.tx.send(*gso_packet(whole, 1000), indirect=True)
    pair.settle()
    expected = [datagram(one, ident=i) for i, one in enumerate(cut(whole, 1000))]
    done = len(pair.tx.collect())
    base = pair.worker.stop(TX)
    sent = len(pair.packets())
    assert done * 50 <= sent < 20 * 50
    pair.start(TX, segment_udp=True, base=base)
    rest: list[bytes] = []
    while len(rest) < (20 - done) * 50:
        pair.settle()
        rest += pair.packets()
    assert [finish(one) for one in rest] == expected * (20 - done)
    assert len(pair.tx.collect()) == 20 - done


def test_packets_with_random_faults_hurt_neither_the_worker_nor_the_next(
    pair: Pair,
) -> None:
    """Under ASan (`tox -e asan`) a byte read or written outside of them is an error."""
    draw = random.Random(1)
    for _ in range(3000):
        packet = bytearray(draw.choice((V4, V6, long_headers(256))))
        for _ in range(draw.randint(1, 3)):
            packet[draw.randrange(60)] = draw.choice(
                (0, 1, 5, 255, draw.randrange(256))
            )
        packet = packet[: draw.choice((len(packet), draw.randint(12, len(packet))))]
        packet[1] = 5
        pair.tx.send(*cut(bytes(packet), draw.choice((7, 64, 2000))), indirect=True)
        pair.settle()
        sent = pair.packets()
        assert len(sent) <= 128
        assert all(one[1] == 0 for one in sent)
        assert len(pair.tx.collect()) == 1
    pair.tx.send(V4)
    pair.settle()
    assert len(pair.packets()) == 5
