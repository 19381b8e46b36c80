# SPDX-License-Identifier: Apache-2.0
"""Counters that belong to no single test of a ring: suppressed signals, batch sizes."""

import pytest

from tests.fakes.pair import HDR, RX, TX, Pair

pytestmark = pytest.mark.parametrize("start", [0, 2**16 - 2])

both = pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])


def send(pair: Pair, count: int) -> None:
    for _ in range(count):
        pair.tx.send(HDR, b"x")


def batches(*counts: int) -> tuple[int, ...]:
    """Return all counts of batch sizes, of which these are the first."""
    return counts + (0,) * (11 - len(counts))


@both
def test_work_that_came_with_a_kick_is_not_counted_as_a_suppressed_kick(
    start: int, event_idx: bool
) -> None:
    with Pair(start=start, event_idx=event_idx) as pair:
        pair.settle()
        send(pair, 2)
        assert pair.tx.kick()
        pair.settle()
        assert pair.status(TX).stats.kicks_suppressed == 0


@both
def test_chains_that_are_found_while_no_kick_is_asked_for_are_counted_by_pass(
    start: int, event_idx: bool
) -> None:
    with Pair(start=start, event_idx=event_idx) as pair:
        pair.settle()
        send(pair, 1)
        assert pair.tx.kick()
        pair.worker.step()  # there was work, so it did not enable kicks
        for _ in range(2):
            send(pair, 3)
            assert not pair.tx.kick()
            pair.worker.step()
            pair.tx.collect()
        # Passes without a chain save no kick.
        pair.settle()
        assert pair.status(TX).stats.kicks_suppressed == 2


@both
def test_updates_that_the_driver_wants_no_call_for_are_counted(
    start: int, event_idx: bool
) -> None:
    with Pair(start=start, event_idx=event_idx) as pair:
        pair.tx.ask_for_calls(True)
        send(pair, 1)
        pair.settle()
        pair.tx.collect()
        for _ in range(3):
            pair.tx.ask_for_calls(False)
            send(pair, 1)
            pair.settle()
            pair.tx.collect()
        stats = pair.status(TX).stats
        assert (stats.calls, stats.calls_suppressed, stats.used_updates) == (1, 3, 4)


@pytest.mark.parametrize(
    ("chains", "counts"),
    [
        (1, batches(1)),
        (2, batches(0, 1)),
        (3, batches(0, 1)),
        (4, batches(0, 0, 1)),
        (63, batches(0, 0, 0, 0, 0, 1)),
        (64, batches(0, 0, 0, 0, 0, 0, 1)),
        (65, batches(1, 0, 0, 0, 0, 0, 1)),
    ],
)
def test_chains_of_each_update_are_counted_by_powers_of_two(
    start: int, chains: int, counts: tuple[int, ...]
) -> None:
    with Pair(start=start, num=256) as pair:
        send(pair, chains)
        pair.settle()
        assert pair.status(TX).stats.batches == counts


def test_chains_of_one_long_packet_are_one_batch(start: int) -> None:
    with Pair(start=start, num=1024) as pair:
        for _ in range(600):
            pair.rx.post(64)
        pair.tap.send(HDR + bytes(600 * 64 - 12))
        pair.settle()
        stats = pair.status(RX).stats
        assert stats.packets == 1
        assert stats.batches == batches(*[0] * 9, 1)
