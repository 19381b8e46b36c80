# SPDX-License-Identifier: Apache-2.0
"""What ping says, understood, and what becomes of it."""

import pytest

from tests.bench.parts import poll
from tests.bench.plan import CannotMeasure

LINE = "64 bytes from 10.9.0.1: icmp_seq={n} ttl=64 time={ms} ms\n"


def test_times_of_ping_become_microseconds() -> None:
    text = "".join(LINE.format(n=n, ms=0.1 * n) for n in range(1, 10))
    assert poll.round_trips(text, 10)[0] == pytest.approx(100)


def test_pings_that_do_not_come_back_are_an_error() -> None:
    with pytest.raises(CannotMeasure, match="1 of 10 pings"):
        poll.round_trips(LINE.format(n=1, ms=1), 10)


def test_polling_is_compared_with_sleeping() -> None:
    polls, sleeps = poll.Round((50.0,) * 9, 40.0), poll.Round((100.0,) * 9, 20.0)
    median, high, cost = poll.figures("--poll-us 50", [polls] * 5, [sleeps] * 5)
    assert (median.ratio, high.ratio, cost.ratio) == (0.5, 0.5, 2)
    assert {figure.peer_name for figure in (median, high, cost)} == {poll.ASLEEP}
