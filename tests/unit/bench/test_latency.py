# SPDX-License-Identifier: Apache-2.0
"""The search for the rate without loss, and what becomes of the client's samples."""

import numpy as np
import pytest

from tests.bench.parts import latency
from tests.bench.parts.latency import HIGHEST_RATE, Sample
from tests.bench.plan import CannotMeasure, Plan


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


@pytest.mark.parametrize("highest", [600.0, 5_000.0, 100_000.0, 250_000.0])
def test_highest_rate_without_loss_is_found(highest: float) -> None:
    responder = Responder(highest)
    found = latency.lossless(responder.send)
    assert 0.85 * highest <= found <= 1.01 * highest


def test_responder_that_answers_everything_is_asked_for_a_bounded_rate() -> None:
    responder = Responder(10 * HIGHEST_RATE)
    assert latency.lossless(responder.send) <= 2 * HIGHEST_RATE
    assert max(responder.asked) <= 2 * HIGHEST_RATE


def test_what_is_lost_once_is_not_the_responders_fault() -> None:
    responder = Responder(16_000.0)

    def send(rate: float, seconds: float) -> Sample:
        sample = responder.send(rate, seconds)
        first = responder.asked.count(rate) == 1
        return Sample(sample.sent, sample.microseconds[: -100 if first else None])

    assert latency.lossless(send) == pytest.approx(16_000.0, rel=0.15)


def test_responder_that_always_loses_is_an_error() -> None:
    with pytest.raises(CannotMeasure, match="lost"):
        latency.lossless(Responder(10.0).send)


def test_both_sides_are_measured_at_parts_of_the_lower_rate() -> None:
    ours, peer = Responder(50_000.0, 20.0), Responder(100_000.0, 40.0)
    found = latency.measure_sides(Plan(), "polling, ", ours.send, peer.send)
    assert found[0].ratio == pytest.approx(0.5, rel=0.2)
    assert ours.asked[-1] == peer.asked[-1]
    assert ours.asked[-1] == pytest.approx(0.9 * found[0].ours)
    p50 = next(figure for figure in found if figure.name == "polling, half load, p50")
    assert (p50.ours, p50.peer, p50.better) == (20, 40, "lower")
    assert len(found) == 1 + 9
