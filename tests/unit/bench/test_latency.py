# SPDX-License-Identifier: Apache-2.0
"""The search for the rate without loss, and what becomes of the client's samples."""

from collections import defaultdict

import numpy as np
import pytest

from tests.bench.parts import latency
from tests.bench.plan import CannotMeasure, Plan
from tests.bench.requests import HIGHEST_RATE, PATIENCE_US, STEP, TRIES, Sample, Search
from tests.bench.responders import (
    ALONE,
    ALONE_POLLING,
    OURS,
    POLLING,
    VM_TAP,
    without_memory,
)


class Responder:
    """Answers up to a rate; what is above that is lost."""

    def __init__(self, highest: float, microseconds: float = 10.0) -> None:
        self.highest = highest
        self.microseconds = microseconds
        self.asked: list[float] = []

    def send(self, rate: float, seconds: float) -> Sample:
        self.asked.append(rate)
        sent = int(rate * seconds)
        answered = int(min(rate, self.highest) * seconds)
        return Sample(sent, np.full(answered, self.microseconds))


def test_sample_is_what_the_client_printed() -> None:
    sample = Sample.parse("4 1000 2000 3000\n")
    assert (sample.sent, sample.loss) == (4, 0.25)
    assert list(sample.microseconds) == [1, 2, 3]


def test_client_that_sent_nothing_has_lost_all() -> None:
    assert Sample.parse("0\n").loss == 1


def test_request_without_a_response_is_a_slow_one() -> None:
    sample = Sample(100, np.full(98, 10.0))
    assert sample.percentile(50) == 10
    assert sample.percentile(99) > 100_000
    assert Sample(1, np.array([])).percentile(50) == PATIENCE_US


@pytest.mark.parametrize("highest", [600.0, 5_000.0, 100_000.0, 250_000.0])
def test_highest_rate_without_loss_is_found(highest: float) -> None:
    found = Search(Responder(highest).send)()
    assert 0.85 * highest <= found <= 1.01 * highest


def test_next_search_begins_where_the_last_one_has_ended() -> None:
    responder = Responder(5_000.0)
    search = Search(responder.send)
    first = search()
    responder.asked.clear()
    assert search() == pytest.approx(first, rel=0.16)
    assert len(responder.asked) <= 1 + TRIES
    responder.highest = 3_000.0
    assert 3_000 / STEP <= search() <= 3_010
    responder.highest = 4_000.0
    assert search() > 3_400


def test_responder_that_answers_everything_is_asked_for_a_bounded_rate() -> None:
    responder = Responder(10 * HIGHEST_RATE)
    assert Search(responder.send)() <= 2 * HIGHEST_RATE
    assert max(responder.asked) <= 2 * HIGHEST_RATE


def test_what_is_lost_once_is_not_the_responders_fault() -> None:
    responder = Responder(16_000.0)

    def send(rate: float, seconds: float) -> Sample:
        sample = responder.send(rate, seconds)
        first = responder.asked.count(rate) == 1
        return Sample(sample.sent, sample.microseconds[: -100 if first else None])

    assert Search(send)() == pytest.approx(16_000.0, rel=0.15)


def test_responder_that_always_loses_is_an_error() -> None:
    with pytest.raises(CannotMeasure, match="lost"):
        Search(Responder(10.0).send)()


def test_all_are_measured_at_parts_of_the_lowest_rate_and_compared() -> None:
    highest = defaultdict(lambda: 500_000.0, {OURS: 50_000.0, POLLING: 60_000.0})
    times = {OURS: 20.0, POLLING: 10.0, VM_TAP: 40.0, ALONE: 5.0, ALONE_POLLING: 4.0}
    responders = {name: Responder(highest[name], times[name]) for name in times}
    clients = {name: one.send for name, one in responders.items()}
    found = latency.measure_rounds(Plan(), clients)
    rate = 0.9 * float(np.median(found.rates[OURS]))
    last = [one.asked[-1] for one in responders.values()]
    assert last == [pytest.approx(rate)] * len(last)
    figures = {figure.name: figure for figure in latency.figures(found)}
    assert len(figures) == 2 * (1 + 2 * 9)
    assert figures[f"without loss, beside {VM_TAP}"].ratio < 0.2
    ratios = {
        f"half load, p50, beside {VM_TAP}": 0.5,
        f"idle, p99, beside {ALONE}": 4.0,
        f"polling, 90 % load, p99.9, beside {VM_TAP}": 0.25,
        f"polling, idle, p99, beside {ALONE_POLLING}": 2.5,
    }
    for name, ratio in ratios.items():
        assert figures[name].ratio == pytest.approx(ratio)
        assert figures[name].better == "lower"


def test_second_card_brings_no_second_memory() -> None:
    args = ["-m", "1G", "-object", "memory", "-netdev", "x", "-device", "y"]
    assert without_memory(args) == ["-netdev", "x", "-device", "y"]
