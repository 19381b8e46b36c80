# SPDX-License-Identifier: Apache-2.0
"""The ring on a real TAP: what only a kernel can answer.

driver ── rings in memory ── worker ── TAP, in a separate network namespace
"""

import errno
import fcntl
import json
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import pytest

from tests.fakes.driver import Desc
from tests.fakes.netns import ip, private_network
from tests.fakes.pair import RX, TX, Pair
from tests.fakes.tap import HEADER, TUN_F_CSUM, TUN_F_TSO4, TUNSETSNDBUF, open_tap
from tests.fakes.udp import ETHERNET, IPV4, IPV6, gso_packet
from tests.waiting import eventually
from vhostpci_guest.dataplane.faults import Fault
from vhostpci_guest.dataplane.native import RingIndex, io_uring_error
from vhostpci_guest.dataplane.tx_methods import IO_URING, io_uring_reason
from vhostpci_shared.metadata import AgentRingState

pytestmark = [
    pytest.mark.process,
    pytest.mark.parametrize("start", [0, 2**16 - 2]),
]

PLAIN = HEADER.pack(0, 0, 0, 0, 0, 0, 0)
FRAME = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5" + bytes(range(100))


@pytest.fixture
def tap() -> Iterator[int]:
    """Yield a queue of a TAP that is up, quiet, and has 12-byte headers."""
    with private_network():
        fd = open_tap("tap0", TUN_F_CSUM | TUN_F_TSO4)
        try:
            with open("/proc/sys/net/ipv6/conf/tap0/disable_ipv6", "w") as sysctl:
                sysctl.write("1")
            ip("link", "set", "tap0", "up")
            yield fd
        finally:
            os.close(fd)


def ask_for_a_neighbour() -> None:
    """Make the kernel send an ARP request into the TAP."""
    ip("address", "add", "192.0.2.1/24", "dev", "tap0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"", ("192.0.2.2", 9))


def test_a_frame_reaches_the_kernel(start: int, tap: int) -> None:
    with Pair(start=start, tap_fd=tap) as pair:
        pair.tx.send(PLAIN, FRAME)
        pair.settle()
        assert pair.status(TX).stats.packets == 1
        shown = subprocess.check_output(["ip", "-j", "-s", "link", "show", "tap0"])
        assert json.loads(shown)[0]["stats64"]["rx"]["packets"] == 1


@pytest.mark.parametrize(
    "header",
    [
        HEADER.pack(0, 1, 54, 0, 0, 0, 0),
        HEADER.pack(1, 0, 0, 0, 5000, 5000, 0),
        HEADER.pack(1, 0, 0, 0, 0xFFFF, 0xFFFF, 0),
        HEADER.pack(1, 1, 0xFFFF, 1000, 34, 16, 0),
        HEADER.pack(0, 77, 0, 1000, 0, 0, 0),
        b"\xff" * 12,
    ],
    ids=[
        "gso size 0",
        "checksum past the packet",
        "checksum offset wraps",
        "header longer than the packet",
        "unknown gso type",
        "all ones",
    ],
)
def test_an_impossible_header_is_dropped_and_the_next_packet_passes(
    start: int, tap: int, header: bytes
) -> None:
    with Pair(start=start, tap_fd=tap) as pair:
        pair.tx.send(header, FRAME)
        pair.tx.send(PLAIN, FRAME)
        pair.settle()
        assert len(pair.tx.collect()) == 2
        stats = pair.status(TX).stats
        assert (stats.packets, stats.drop_refused) == (1, 1)
        assert pair.state(TX) == AgentRingState.RUNNING


@pytest.mark.parametrize("length", [0, 1, 13])
def test_a_frame_without_an_ethernet_header_is_dropped(
    start: int, tap: int, length: int
) -> None:
    with Pair(start=start, tap_fd=tap) as pair:
        pair.tx.send(PLAIN, FRAME[:length] or PLAIN[:0])
        pair.settle()
        assert pair.status(TX).stats.drop_refused == 1


def test_a_tap_that_is_down_drops_and_counts(start: int, tap: int) -> None:
    with Pair(start=start, tap_fd=tap) as pair:
        ip("link", "set", "tap0", "down")
        pair.tx.send(PLAIN, FRAME)
        pair.settle()
        ip("link", "set", "tap0", "up")
        pair.tx.send(PLAIN, FRAME)
        pair.settle()
        stats = pair.status(TX).stats
        assert (stats.packets, stats.drop_down) == (1, 1)


def is_broken(pair: Pair, index: RingIndex) -> bool:
    return pair.state(index) == AgentRingState.BROKEN


@pytest.mark.parametrize("threaded", [False, True])
def test_a_tap_that_is_deleted_breaks_both_rings(
    start: int, tap: int, threaded: bool
) -> None:
    with Pair(start=start, tap_fd=tap, threaded=threaded) as pair:
        pair.rx.post(2000)
        pair.rx.kick()
        ip("link", "delete", "tap0")
        pair.tx.send(PLAIN, FRAME)
        pair.tx.kick()
        if not threaded:
            pair.settle()
        for index in (RX, TX):
            assert eventually(partial(is_broken, pair, index))
            status = pair.status(index)
            assert (status.fault, status.error) == (Fault.TAP, errno.EBADFD)


@pytest.mark.parametrize("header", [True, False], ids=["all", "but the header"])
def test_memory_that_stays_lost_breaks_the_transmit_ring(
    start: int, tap: int, header: bool
) -> None:
    with Pair(start=start, tap_fd=tap, num=64) as pair:
        lost = pair.memory.regions[0]
        kept = Desc(pair.memory.allocate(HEADER.size), HEADER.size)
        rest = Desc(lost.guest_addr, 200)
        for _ in range(20):
            pair.tx.offer(*([rest] if header else [kept, rest]))
        lost.cut()

        def broken() -> bool:
            pair.settle()
            return is_broken(pair, TX)

        assert eventually(broken)
        assert pair.status(TX).fault == Fault.MEMORY


def test_memory_that_is_lost_costs_one_packet_on_the_receive_ring(
    start: int, tap: int
) -> None:
    """Where only the packet is lost, Linux's tun_put_user() does not say so."""
    with Pair(start=start, tap_fd=tap) as pair:
        lost = pair.memory.regions[0]
        pair.rx.offer(Desc(lost.guest_addr, 2000))
        lost.cut()
        ask_for_a_neighbour()
        pair.settle()
        assert pair.state(RX) == AgentRingState.RUNNING
        assert pair.status(RX).stats.drop_read == 1


def test_num_buffers_of_a_packet_from_the_kernel_is_the_rings(
    start: int, tap: int
) -> None:
    # The kernel fills 10 of the header's 12 bytes and skips the rest.
    with Pair(start=start, tap_fd=tap, num=64) as pair:
        for _ in range(40):
            pair.memory.write(pair.memory._next, b"\xee" * 16)
            pair.rx.post(16)
        ask_for_a_neighbour()
        pair.settle()
        used = pair.rx.collect()
        assert used
        assert used[0].data[10:12] == len(used).to_bytes(2, "little")
        frame = b"".join(u.data for u in used)[12:]
        assert frame[:6] == b"\xff" * 6
        assert frame[12:14] == b"\x08\x06"


@pytest.mark.parametrize("limit", [None, 1 << 20], ids=["no limit", "limited"])
def test_many_packets_by_io_uring_arrive_once_and_in_order(
    start: int, tap: int, limit: int | None
) -> None:
    """A TAP whose send buffer has a limit may be full; its requests are linked."""
    if io_uring_error():
        pytest.skip(io_uring_reason(io_uring_error()))
    if limit is not None:
        fcntl.ioctl(tap, TUNSETSNDBUF, struct.pack("i", limit))
    with (
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as sock,
        Pair(start=start, tap_fd=tap, num=512, io_uring=True) as pair,
    ):
        sock.bind(("tap0", 0x88B5))
        sock.settimeout(10)
        got = []
        for first in range(0, 2000, 200):
            for number in range(first, first + 200):
                pair.tx.send(PLAIN, FRAME[:14] + number.to_bytes(46, "big"))
            pair.settle()
            pair.tx.collect()
            got += [int.from_bytes(sock.recv(64)[14:], "big") for _ in range(200)]
        assert got == list(range(2000))
        status = pair.status(TX)
        assert (status.stats.packets, status.stats.dropped) == (2000, 0)
        assert status.method == IO_URING


def test_a_64k_segment_is_one_chain(start: int, tap: int) -> None:
    """A TCP segment with GSO, as Linux's driver hands it over."""
    tcp = struct.pack("!HHIIBBHHH", 1, 2, 3, 4, 5 << 4, 16, 1000, 0, 0)
    size = 60_000
    total = 20 + len(tcp) + size
    ipv4 = struct.pack("!BBHHHBBH8s", 0x45, 0, total, 0, 0, 64, 6, 0, b"fromto..")
    frame = FRAME[:12] + b"\x08\x00" + ipv4 + tcp
    header = HEADER.pack(1, 1, 54, 1448, 34, 16, 0)
    with Pair(start=start, tap_fd=tap, num=64) as pair:
        pair.tx.send(header, frame, *[bytes(4096)] * 14, bytes(size - 14 * 4096))
        pair.settle()
        stats = pair.status(TX).stats
        assert (stats.packets, stats.bytes) == (1, 14 + total)


@contextmanager
def bridged_taps() -> Iterator[tuple[int, int]]:
    """Yield two TAPs of a bridge; the second one leaves no work to its reader."""
    with private_network(), ExitStack() as stack:
        ip("link", "add", "br0", "type", "bridge")
        fds = []
        for name, offloads in (("tap0", TUN_F_CSUM), ("tap1", 0)):
            fds.append(open_tap(name, offloads))
            stack.callback(os.close, fds[-1])
            ip("link", "set", name, "master", "br0")
        for name in ("br0", "tap0", "tap1"):
            with open(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6", "w") as sysctl:
                sysctl.write("1")
            ip("link", "set", name, "up")
        # A loaded kernel takes a while to notice that they have a carrier.
        assert eventually(lambda: forwards("tap0") and forwards("tap1"))
        yield fds[0], fds[1]


def forwards(port: str) -> bool:
    """Return whether a port of a bridge takes packets."""
    return "bridge_slave state forwarding" in ip("-d", "link", "show", port)


def crossed(
    start: int, *, segment: bool, packets: list[tuple[bytes, bytes]]
) -> list[bytes]:
    """Return the frames that come out of a bridge after packets of the master's."""
    with bridged_taps() as (entry, exit_):
        with Pair(start=start, tap_fd=entry, num=256, running=False) as pair:
            pair.start(TX, segment_udp=segment)
            for packet in packets:
                pair.tx.send(*packet)
            pair.settle()
            assert pair.status(TX).stats.dropped == 0
        got = []
        with suppress(BlockingIOError):
            while True:
                got.append(os.read(exit_, 1 << 17)[HEADER.size :])
        # Without what the bridge sends by itself.
        return [frame for frame in got if frame.startswith(ETHERNET)]


@pytest.mark.parametrize("ip_type", [IPV4, IPV6], ids=["IPv4", "IPv6"])
def test_worker_makes_the_datagrams_of_udp_segments_that_the_kernel_makes(
    start: int, ip_type: int
) -> None:
    whole = struct.pack("!5000H", *range(5000))
    packets = [
        gso_packet(whole[:length], size, ip_type, tags=tags, ident=length)
        for length, size in ((10000, 1448), (3001, 1000), (2999, 1), (512, 4))
        if length <= size * 128
        for tags in (0, 1)
    ]
    ours = crossed(start, segment=True, packets=packets)
    kernels = crossed(start, segment=False, packets=packets)
    assert len(ours) == 2 * (7 + 4 + 128)
    assert ours == kernels
