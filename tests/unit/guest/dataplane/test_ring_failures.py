# SPDX-License-Identifier: Apache-2.0
"""System calls on the TAP fail: for a moment, or for so long that it is a fault."""

import errno
import os
import select
import time
from collections.abc import Iterator

import pytest

from tests.fakes.driver import Desc
from tests.fakes.pair import HDR, RX, TX, Pair
from tests.threads import processor_time
from tests.waiting import eventually
from vhostpci_guest.dataplane.faults import Fault
from vhostpci_guest.dataplane.native import RingIndex
from vhostpci_shared.metadata import AgentRingState

each = pytest.mark.parametrize("index", RingIndex, ids=["rx", "tx"])


def lost(pair: Pair, index: RingIndex) -> int:
    """Return how many packets were lost because the kernel could not use the memory."""
    stats = pair.status(index).stats
    return stats.drop_read if index == RX else stats.drop_memory


def offer(pair: Pair, index: RingIndex, count: int) -> None:
    """Offer buffers in the first region, and packets for those of the receive ring."""
    for number in range(count):
        addr = pair.memory.regions[0].guest_addr + 0x1000 * number
        pair.driver(index).offer(Desc(addr, 200))
        if index == RX:
            pair.tap.send(HDR + b"into memory that is not there")


@each
def test_memory_that_cannot_be_used_for_a_while_costs_one_packet(
    index: RingIndex,
) -> None:
    with Pair() as pair:
        pair.memory.regions[0].cut()
        offer(pair, index, 1)
        pair.settle()
        assert (pair.state(index), lost(pair, index)) == (AgentRingState.RUNNING, 1)
        pair.memory.regions[0].grow()
        offer(pair, index, 1)

        def passed() -> bool:
            pair.settle()
            return pair.status(index).stats.packets == 1

        assert eventually(passed)
        assert pair.status(index).stats.dropped == 1


@each
def test_memory_that_stays_unusable_stops_the_ring_after_few_packets(
    index: RingIndex,
) -> None:
    with Pair(num=64) as pair:
        pair.memory.regions[0].cut()
        offer(pair, index, 40)

        def broken() -> bool:
            pair.settle()
            return pair.state(index) == AgentRingState.BROKEN

        assert eventually(broken)
        assert pair.status(index).fault is Fault.MEMORY
        assert pair.status(index).error == errno.EFAULT
        assert lost(pair, index) == 12
        # It is where it stopped that a next attempt goes on, and loses nothing more.
        pair.memory.regions[0].grow()
        pair.start(index, base=pair.worker.stop(index))
        pair.settle()
        assert pair.status(index).stats.packets == 40 - 12


def test_a_failure_does_not_count_once_a_packet_has_passed() -> None:
    with Pair(num=64) as pair:
        for _ in range(15):
            pair.memory.regions[0].cut()
            offer(pair, TX, 1)
            pair.settle()
            pair.memory.regions[0].grow()
            pair.tx.send(HDR, b"passes")

            def passed() -> bool:
                pair.settle()
                return len(pair.packets()) == 1

            assert eventually(passed)
        assert pair.state(TX) == AgentRingState.RUNNING


def process_memory() -> int:
    """Return a descriptor whose reads fail with EIO: no memory is at address 0."""
    return os.open("/proc/self/mem", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def unreadable() -> int:
    """Return a descriptor whose reads fail with EINVAL."""
    with select.epoll() as epoll:
        fd = os.dup(epoll.fileno())
    os.set_blocking(fd, False)
    return fd


@pytest.fixture
def bad_tap(request: pytest.FixtureRequest) -> Iterator[int]:
    """A descriptor in place of a TAP, which the parameter opens."""
    fd = request.param()
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("bad_tap", "error"),
    [(process_memory, errno.EIO), (unreadable, errno.EINVAL)],
    indirect=["bad_tap"],
)
def test_a_tap_that_cannot_be_read_ends_the_ring_after_several_attempts(
    bad_tap: int, error: int
) -> None:
    with Pair(threaded=True, tap_fd=bad_tap) as pair:
        began, used = time.monotonic(), processor_time("vhostpci-0")
        pair.rx.post(2000)
        pair.rx.kick()
        assert eventually(lambda: pair.state(RX) == AgentRingState.BROKEN)
        status = pair.status(RX)
        assert (status.fault, status.error) == (Fault.TAP, error)
        assert status.stats.drop_read == 12
        # Pauses lie between the attempts, and cost no processor time.
        assert time.monotonic() - began > 0.4
        assert processor_time("vhostpci-0") - used < 0.3
