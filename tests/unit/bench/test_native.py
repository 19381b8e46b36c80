# SPDX-License-Identifier: Apache-2.0
"""What iperf3 and /proc say, understood."""

import os

import pytest

from tests.bench import card, native


def test_received_bits_count_and_not_sent_ones() -> None:
    end = {
        "sum_sent": {"bits_per_second": 9e9, "seconds": 2.0},
        "sum_received": {"bits_per_second": 4e9, "seconds": 2.0},
    }
    traffic = native.understand({"end": end}, 3.0)
    assert traffic.rate == pytest.approx(4)
    assert traffic.cost == pytest.approx(3 / 8)


def test_lost_datagrams_of_an_older_iperf3_do_not_count() -> None:
    end = {"sum": {"bytes": 1e9, "seconds": 4.0, "lost_percent": 25.0}}
    assert native.understand({"end": end}, 0.0).rate == pytest.approx(1.5)


def stat(parent: int, *times: int) -> list[str]:
    """Return the words of /proc/PID/stat from the state on."""
    return ["S", str(parent), *["0"] * 9, *map(str, times), "20"]


def test_time_of_a_process_is_that_of_all_it_has_started() -> None:
    stats = {
        10: stat(1, 1, 2, 3, 4),
        11: stat(10, 10, 20, 30, 40),
        12: stat(11, 100, 0, 0, 0),
        13: stat(1, 1000, 0, 0, 0),
    }
    assert native.tree_ticks(10, stats) == 10 + 100 + 100
    assert native.tree_ticks(99, stats) == 0
    assert native.below(10, stats) == [11, 12]


def test_time_of_this_process_grows() -> None:
    before = native.threads_seconds(os.getpid())
    sum(range(100_000))
    assert native.threads_seconds(os.getpid()) > before > 0


def test_datagrams_that_arrived_count_and_not_those_that_were_sent() -> None:
    assert card.received_gigabits("1000000 9000000 2000000\n") == pytest.approx(4)


def test_a_call_of_the_stream_fits_into_a_segment() -> None:
    assert card.PAYLOAD + 28 == 1500
    assert card.PAYLOAD * card.DATAGRAMS < 65_507
