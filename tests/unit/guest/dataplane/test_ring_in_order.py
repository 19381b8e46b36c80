# SPDX-License-Identifier: Apache-2.0
"""With IN_ORDER one entry of the used ring stands for all chains of an update."""

import pytest

from tests.fakes.driver import Driver
from tests.fakes.pair import HDR, Pair

UNTOUCHED = 0xFFFFFFFF

pytestmark = pytest.mark.parametrize("start", [0, 2**16 - 2])


def clear_used(driver: Driver) -> None:
    """Fill the used ring with a head that no chain has."""
    for slot in range(driver.num):
        driver.memory.store(driver.used + 4 + 8 * slot, 4, UNTOUCHED)


def used_heads(driver: Driver, start: int, count: int) -> list[int]:
    """Return the heads in `count` entries of the used ring from index `start` on."""
    entries = ((start + i) % driver.num for i in range(count))
    return [driver.memory.load(driver.used + 4 + 8 * slot, 4) for slot in entries]


def test_the_first_entry_has_the_head_of_the_last_chain_sent(start: int) -> None:
    with Pair(start=start, in_order=True) as pair:
        clear_used(pair.tx)
        heads = [pair.tx.send(HDR, b"one", b"piece")]
        heads += [pair.tx.send(HDR + data) for data in (b"two", b"three", b"four")]
        pair.settle()
        assert pair.tx.used_idx() == (start + 4) % 2**16
        assert used_heads(pair.tx, start, 4) == [heads[-1], *[UNTOUCHED] * 3]
        assert [used.head for used in pair.tx.collect()] == heads


def test_each_update_begins_where_the_driver_looks_next(start: int) -> None:
    with Pair(start=start, in_order=True) as pair:
        for count in (1, 3, 2, 5):
            heads = [pair.tx.send(HDR + b"packet") for _ in range(count)]
            pair.settle()
            assert [used.head for used in pair.tx.collect()] == heads


def test_a_full_ring_is_used_by_one_entry(start: int) -> None:
    with Pair(start=start, num=256, in_order=True) as pair:
        heads = [pair.tx.send(HDR + b"packet") for _ in range(256)]
        pair.settle()
        assert len(pair.packets()) == 256
        assert [used.head for used in pair.tx.collect()] == heads


def test_each_received_packet_has_an_entry_with_its_length(start: int) -> None:
    """A chain without one would count as filled completely."""
    packets = [HDR + bytes(length) for length in (60, 70, 80)]
    with Pair(start=start, in_order=True) as pair:
        heads = [pair.rx.post(1000) for _ in packets]
        for packet in packets:
            pair.tap.send(packet)
        pair.settle()
        got = [(used.head, used.len) for used in pair.rx.collect()]
        assert got == list(zip(heads, (72, 82, 92), strict=True))


def test_without_the_feature_each_chain_has_an_entry(start: int) -> None:
    with Pair(start=start, in_order=False) as pair:
        clear_used(pair.tx)
        heads = [pair.tx.send(HDR + b"packet") for _ in range(3)]
        pair.settle()
        assert used_heads(pair.tx, start, 3) == heads
