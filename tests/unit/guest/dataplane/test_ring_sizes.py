# SPDX-License-Identifier: Apache-2.0
"""Split rings of every size that VIRTIO has, filled to the last entry."""

import pytest

from tests.fakes.driver import Desc
from tests.fakes.pair import HDR, RX, TX, Pair
from vhostpci_shared.metadata import AgentRingState
from vhostpci_shared.virtio import MAX_SPLIT_SIZE

SIZES = [1 << i for i in range(1, 16)]
sizes = pytest.mark.parametrize("num", SIZES)


def big_pair(num: int) -> Pair:
    """Return a pair whose indices are about to wrap, with room for such rings."""
    return Pair((1 << 32, 8 << 20), num=num, start=2**16 - 2)


def test_largest_size_is_that_of_virtio() -> None:
    assert SIZES[-1] == MAX_SPLIT_SIZE


@sizes
def test_transmit_ring_that_is_full_is_sent_and_can_be_filled_again(num: int) -> None:
    with big_pair(num) as pair:
        buffer = pair.memory.allocate(64)
        for lap in range(2):
            data = HDR + bytes([lap]) * 20
            pair.memory.write(buffer, data)
            heads = [pair.tx.offer(Desc(buffer, len(data))) for _ in range(num)]
            got: list[bytes] = []
            while len(got) < num:
                pair.settle()
                some = pair.packets()
                assert some, f"{len(got)} packets came"
                got += some
            assert set(got) == {data}
            pair.settle()
            assert [used.head for used in pair.tx.collect()] == heads
        assert pair.status(TX).stats.packets == 2 * num


@sizes
def test_receive_ring_that_is_full_takes_a_packet_for_each_entry(num: int) -> None:
    with big_pair(num) as pair:
        buffer = pair.memory.allocate(64)
        heads = [pair.rx.offer(Desc(buffer, 64)) for _ in range(num)]
        done = []
        for _ in range(num):
            pair.tap.send(HDR + b"packet")
            pair.worker.step()
            done += pair.rx.collect()
        assert [used.head for used in done] == heads
        assert {used.len for used in done} == {len(HDR) + 6}
        assert pair.state(RX) == AgentRingState.RUNNING
