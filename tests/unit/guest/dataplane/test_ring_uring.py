# SPDX-License-Identifier: Apache-2.0
"""Packets go to the TAP by io_uring, many with one system call."""

import errno
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.driver import Desc
from tests.fakes.pair import HDR, RX, TX, Pair
from tests.waiting import eventually
from vhostpci_guest.dataplane.faults import Fault
from vhostpci_guest.dataplane.native import io_uring_error
from vhostpci_guest.dataplane.tx_methods import IO_URING, WRITEV, io_uring_reason
from vhostpci_shared.metadata import AgentRingState

SELF = Path("/proc/self")


def numbered(packets: list[bytes]) -> list[int]:
    """Return the numbers that packets begin with."""
    return [int.from_bytes(packet[12:16], "big") for packet in packets]


def requests() -> int:
    """Return how many requests the only io_uring of this process has had."""
    [ring] = (
        fd
        for fd in (SELF / "fd").iterdir()
        if os.path.islink(fd) and "io_uring" in os.readlink(fd)
    )
    lines = (SELF / "fdinfo" / ring.name).read_text().splitlines()
    [tail] = (line.split()[1] for line in lines if line.startswith("SqTail:"))
    return int(tail, 0)


@pytest.fixture(scope="module", autouse=True)
def usable() -> None:
    """Skip where the kernel has no io_uring, or none for the socket of `Pair`."""
    if io_uring_error():
        pytest.skip(io_uring_reason(io_uring_error()))
    with Pair(num=16, io_uring=True) as pair:
        for _ in range(4):
            pair.tx.send(HDR, b"packet")
        pair.settle()
        if pair.status(TX).method != IO_URING:
            pytest.skip("this kernel writes to no socket by io_uring, as before 6.4")


@pytest.fixture
def pair(start: int) -> Iterator[Pair]:
    with Pair(start=start, num=512, io_uring=True) as pair:
        yield pair


def test_many_packets_go_by_io_uring_in_order(pair: Pair) -> None:
    heads = [pair.tx.send(HDR, i.to_bytes(4, "big")) for i in range(100)]
    pair.settle()
    assert numbered(pair.packets()) == list(range(100))
    assert [used.head for used in pair.tx.collect()] == heads
    assert requests() == 100
    assert pair.status(TX).method == IO_URING
    assert pair.status(RX).method == ""


def test_packet_of_many_pieces_goes_as_it_is(pair: Pair) -> None:
    packet = HDR + bytes(range(200))
    for _ in range(4):
        pair.tx.send(*(packet[i : i + 40] for i in range(0, len(packet), 40)))
    pair.settle()
    assert pair.packets() == [packet] * 4
    assert requests() == 4


def test_few_packets_are_written_one_by_one(pair: Pair) -> None:
    """For them a call of io_uring costs more than it saves."""
    for i in range(3):
        pair.tx.send(HDR, i.to_bytes(4, "big"))
    pair.settle()
    assert numbered(pair.packets()) == [0, 1, 2]
    assert requests() == 0


def test_full_tap_that_is_emptied_meanwhile_keeps_all_packets_in_order(
    start: int,
) -> None:
    """A long packet meets a full TAP; a short one behind it would still fit."""
    choose = random.Random(4)
    with Pair(start=start, num=1024, io_uring=True, threaded=True) as pair:
        pair.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        got: list[int] = []
        sent = 0

        def all_arrived() -> bool:
            got.extend(numbered(pair.packets()))
            return len(got) == sent

        for _ in range(10):
            for _ in range(200):
                length = choose.choice([0, 0, 0, 100, 3000, 6000])
                pair.tx.send(HDR + sent.to_bytes(4, "big") + bytes(length))
                sent += 1
            pair.tx.kick()
            assert eventually(all_arrived, timeout=10)
            pair.tx.collect()
        assert got == list(range(sent))
        # The thread counts a packet after it has written it.
        assert eventually(lambda: pair.status(TX).stats.packets == sent)
        stats = pair.status(TX).stats
        assert stats.dropped == 0
        assert stats.tap_full > 0


def test_what_the_tap_refuses_is_dropped_alone(pair: Pair) -> None:
    pair.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    heads = [
        pair.tx.send(HDR, i.to_bytes(4, "big") + bytes(65000 if i % 8 == 5 else 0))
        for i in range(24)
    ]
    pair.settle()
    assert numbered(pair.packets()) == [i for i in range(24) if i % 8 != 5]
    assert [used.head for used in pair.tx.collect()] == heads
    assert pair.status(TX).stats.drop_refused == 3


def test_memory_that_cannot_be_used_costs_a_packet_at_a_time() -> None:
    with Pair(num=64, io_uring=True) as pair:
        pair.memory.regions[0].cut()
        for number in range(40):
            pair.tx.offer(Desc(pair.memory.regions[0].guest_addr + 4096 * number, 200))

        def broken() -> bool:
            pair.settle()
            return pair.state(TX) == AgentRingState.BROKEN

        assert eventually(broken)
        status = pair.status(TX)
        assert (status.fault, status.error) == (Fault.MEMORY, errno.EFAULT)
        assert status.stats.drop_memory == 12
        assert status.method == IO_URING


def test_stop_while_the_tap_is_full_leaves_the_rest_to_a_successor(pair: Pair) -> None:
    for i in range(200):
        pair.tx.send(HDR + i.to_bytes(4, "big") + bytes(4000))
    pair.settle()
    index = pair.worker.stop(TX)
    got = pair.packets()
    assert 0 < len(got) < 200
    assert index == pair.after(len(got))
    pair.start(TX, base=index)
    while len(got) < 200:
        pair.settle()
        got += pair.packets()
    assert numbered(got) == list(range(200))


def test_tap_that_is_gone_breaks_the_ring(pair: Pair) -> None:
    pair.tap.close()
    for _ in range(8):
        pair.tx.send(HDR, b"no TAP")
    pair.settle()
    status = pair.status(TX)
    assert (status.state, status.fault) == (AgentRingState.BROKEN, Fault.TAP)
    assert pair.tx.collect() == []


def test_ring_of_a_closed_worker_is_closed() -> None:
    before = len(list((SELF / "fd").iterdir()))
    with Pair(io_uring=True):
        pass
    assert len(list((SELF / "fd").iterdir())) == before


FORBID = """
import ctypes, struct, sys
from tests.fakes.pair import HDR, TX, Pair

number, error = map(int, sys.argv[1:])
# BPF: load the number of the call; if it is that one, return SECCOMP_RET_ERRNO.
code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (6, 0, 0, 0x50000 | error),
        (6, 0, 0, 0x7FFF0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *x) for x in code))
fprog = struct.pack("HxxxxxxP", len(code), ctypes.addressof(program))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, ctypes.c_char_p(fprog), 0, 0) == 0  # PR_SET_SECCOMP
with Pair(num=128, io_uring=True) as pair:
    for i in range(40):
        pair.tx.send(HDR, bytes([i]))
    pair.settle()
    arrived = [packet[12] for packet in pair.packets()] == list(range(40))
    status = pair.status(TX)
    print(arrived, status.method, status.method_reason, sep="|")
"""
SETUP, ENTER = 425, 426


@pytest.mark.parametrize(
    ("call", "error"),
    [(SETUP, errno.ENOSYS), (SETUP, errno.EPERM), (ENTER, errno.EPERM)],
    ids=["no io_uring", "forbidden", "calls forbidden"],
)
def test_packets_are_written_one_by_one_where_io_uring_is_missing(
    call: int, error: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORBID, str(call), str(error)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stderr == ""
    assert done.stdout.strip() == f"True|{WRITEV}|{io_uring_reason(error)}"
