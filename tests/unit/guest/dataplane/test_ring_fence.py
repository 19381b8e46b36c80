# SPDX-License-Identifier: Apache-2.0
"""The fence: the worker does not touch a ring that another back-end has taken over."""

import pytest

from tests.fakes.driver import WRITE, Desc
from tests.fakes.pair import HDR, RX, TX, Pair
from vhostpci_guest.dataplane.faults import Fault, RingError
from vhostpci_guest.dataplane.native import RingIndex
from vhostpci_shared.metadata import AgentRingState

each = pytest.mark.parametrize("index", [RX, TX], ids=["rx", "tx"])


def work(pair: Pair, index: RingIndex) -> None:
    """Give a ring one packet to deal with."""
    if index == RX:
        pair.rx.post(100)
        pair.tap.send(HDR + b"x")
    else:
        pair.tx.send(HDR, b"x")


def fenced(pair: Pair, index: RingIndex) -> Fault:
    status = pair.status(index)
    assert status.state == AgentRingState.FENCED
    assert pair.events() == 1
    return status.fault


@each
@pytest.mark.parametrize("by", [1, 2**16 - 1, 2**15])
def test_a_used_idx_that_another_back_end_moved_fences_the_ring(
    start: int, index: RingIndex, by: int
) -> None:
    with Pair(start=start) as pair:
        work(pair, index)
        pair.settle()
        driver = pair.driver(index)
        driver.collect()
        driver.move_used(start + 1 + by)
        ring = driver.bytes_of_ring()
        if index == RX:
            pair.tap.send(HDR + b"x")
        pair.settle()
        assert fenced(pair, index) == Fault.USED_MOVED
        assert driver.bytes_of_ring() == ring


@each
def test_another_session_fences_the_ring(start: int, index: RingIndex) -> None:
    with Pair(start=start) as pair:
        work(pair, index)
        pair.settle()
        pair.memory.store(pair.meta[index], 8, 1)
        driver = pair.driver(index)
        ring = driver.bytes_of_ring()
        pair.settle()
        assert fenced(pair, index) == Fault.SESSION
        assert driver.bytes_of_ring() == ring
        assert "wait for the daemon's next session" in pair.status(index).reason


@each
def test_the_session_number_has_64_bits(start: int, index: RingIndex) -> None:
    with Pair(start=start, running=False) as pair:
        pair.memory.store(pair.meta[index], 8, 2**63 + 5)
        pair.start(index, session=2**63 + 5)
        pair.memory.store(pair.meta[index], 8, 5)
        pair.settle()
        assert fenced(pair, index) == Fault.SESSION


@each
def test_a_fenced_ring_stays_untouched(start: int, index: RingIndex) -> None:
    with Pair(start=start) as pair:
        pair.memory.store(pair.meta[index], 8, 1)
        pair.settle()
        driver = pair.driver(index)
        work(pair, index)
        ring = driver.bytes_of_ring()
        pair.memory.store(pair.meta[index], 8, 0)  # the old number again
        pair.settle()
        assert driver.bytes_of_ring() == ring
        assert pair.packets() == []
        assert driver.calls() == 0
        assert pair.state(index) == AgentRingState.FENCED


@each
def test_one_ring_fenced_leaves_the_other_running(start: int, index: RingIndex) -> None:
    with Pair(start=start) as pair:
        pair.driver(index).move_used(start + 1)
        other = TX if index == RX else RX
        work(pair, other)
        pair.settle()
        assert pair.state(index) == AgentRingState.FENCED
        assert pair.status(other).stats.packets == 1


@pytest.mark.split_ring
def test_the_used_idx_is_checked_again_before_it_is_updated(start: int) -> None:
    with Pair(start=start) as pair:
        # The packet itself overwrites the used idx, in the middle of the pass.
        pair.rx.hand_over(Desc(pair.rx.used - 12, 16, WRITE))
        pair.tap.send(HDR + (start + 1).to_bytes(2, "little") * 2)
        pair.settle()
        assert fenced(pair, RX) == Fault.USED_MOVED
        assert pair.memory.load(pair.rx.used + 8, 4) == 0  # no used element
        assert pair.rx.calls() == 0


@pytest.mark.split_ring
def test_the_used_idx_is_checked_again_before_kicks_are_enabled(
    start: int,
) -> None:
    with Pair(start=start, hold=100) as pair:
        # The packet overwrites the used flags and idx, and is held: it is longer.
        pair.rx.hand_over(Desc(pair.rx.used - 12, 16, WRITE))
        pair.tap.send(HDR + b"\x01\x00" + (start + 1).to_bytes(2, "little") + b"more")
        pair.settle()
        assert fenced(pair, RX) == Fault.USED_MOVED
        assert pair.memory.load(pair.rx.used, 2) == 1


@pytest.mark.split_ring
@each
def test_a_start_at_another_index_is_refused(start: int, index: RingIndex) -> None:
    with Pair(start=start, running=False) as pair:
        with pytest.raises(RingError, match="used index or its session") as caught:
            pair.start(index, base=(start + 1) % 2**16)
        assert "read the metadata again" in str(caught.value)
        assert pair.state(index) == AgentRingState.IDLE
        pair.start(index)


@each
def test_a_start_in_another_session_is_refused(start: int, index: RingIndex) -> None:
    with (
        Pair(start=start, running=False) as pair,
        pytest.raises(RingError, match="used index or its session"),
    ):
        pair.start(index, session=1)


@pytest.mark.split_ring
@each
def test_a_fenced_ring_can_be_started_in_its_new_session(
    start: int, index: RingIndex
) -> None:
    with Pair(start=start) as pair:
        pair.memory.store(pair.meta[index], 8, 7)
        driver = pair.driver(index)
        driver.move_used(start + 3)
        pair.settle()
        assert pair.state(index) == AgentRingState.FENCED
        driver.avail_idx = driver.last_used = (start + 3) % 2**16
        driver.publish(driver.avail_idx)
        pair.start(index, base=driver.avail_idx, session=7)
        work(pair, index)
        pair.settle()
        assert pair.status(index).stats.packets == 1
        assert len(driver.collect()) == 1


@each
def test_an_idle_ring_is_fenced_before_kicks_are_enabled(
    start: int, index: RingIndex
) -> None:
    with Pair(start=start) as pair:
        driver = pair.driver(index)
        pair.memory.store(driver.used, 2, 1)
        driver.move_used(start + 1)
        pair.settle()
        assert pair.state(index) == AgentRingState.FENCED
        assert pair.memory.load(driver.used, 2) == 1
