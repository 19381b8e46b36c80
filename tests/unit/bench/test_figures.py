# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of figures: medians, ratios, limits, turns."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tests.bench.figures import Figure, in_rounds, in_turn, limits, steady_mean

FIGURE = Figure(
    part="ring",
    name="tx 64",
    unit="ns/packet",
    better="lower",
    peer_name="DPDK",
    ours_runs=(90.0, 80.0, 85.0, 80.0, 200.0),
    peer_runs=(100.0, 100.0, 110.0, 90.0, 100.0),
)


def test_ratio_is_that_of_the_medians_ours_over_the_peers() -> None:
    assert (FIGURE.ours, FIGURE.peer) == (85, 100)
    assert FIGURE.ratio == pytest.approx(0.85)


def test_limits_enclose_the_ratio_and_the_same_runs_give_the_same_limits() -> None:
    low, high = FIGURE.limits()
    assert low < FIGURE.ratio < high
    assert FIGURE.limits() == (low, high)


def test_limits_are_narrow_where_the_runs_agree() -> None:
    same = replace(FIGURE, ours_runs=(80.0,) * 5, peer_runs=(100.0,) * 5)
    assert same.limits() == pytest.approx((0.8, 0.8))


def test_a_run_and_its_peers_are_drawn_together() -> None:
    """A load that slows both by the same factor does not widen the limits."""
    slow = np.array([1, 2, 4, 8, 16])
    loaded = replace(
        FIGURE, ours_runs=tuple(80.0 * slow), peer_runs=tuple(100.0 * slow)
    )
    assert loaded.limits() == pytest.approx((0.8, 0.8))


def test_more_confidence_is_a_wider_interval() -> None:
    wide, narrow = FIGURE.limits(0.99), FIGURE.limits(0.5)
    assert wide[0] <= narrow[0] < narrow[1] <= wide[1]
    assert wide != narrow


def test_limits_leave_out_as_much_below_as_above() -> None:
    assert limits(np.arange(101.0), 0.9) == pytest.approx((5, 95))


@pytest.mark.parametrize(
    ("better", "peer", "is_better"),
    [
        ("lower", 100.0, True),
        ("lower", 70.0, False),
        ("higher", 70.0, True),
        ("higher", 100.0, False),
        ("lower", 85.0, True),
        ("higher", 85.0, True),
    ],
)
def test_better_says_on_which_side_of_the_peer_we_should_be(
    better: str, peer: float, is_better: bool
) -> None:
    figure = replace(
        FIGURE,
        better="lower" if better == "lower" else "higher",
        peer_runs=(peer,) * 5,
    )
    assert figure.is_better == is_better


def test_runs_that_are_no_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="not pairs"):
        replace(FIGURE, peer_runs=(1.0,))


@pytest.mark.parametrize("runs", [(), (1.0, 0.0)])
def test_a_run_that_measured_nothing_is_refused(runs: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="measured nothing"):
        replace(FIGURE, ours_runs=runs, peer_runs=(1.0,) * len(runs))


def test_steady_mean_leaves_out_what_was_interrupted_and_keeps_what_recurs() -> None:
    bursts = [100.0, 100.0, 100.0, 200.0] * 10
    assert steady_mean(np.array([*bursts, 1e9])) == pytest.approx(125, rel=0.05)


def test_steady_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing"):
        steady_mean(np.array([]))


def test_the_two_sides_take_turns_and_each_is_first_every_other_time() -> None:
    order: list[str] = []

    def measure(side: str) -> int:
        order.append(side)
        return len(order)

    ours, peer = in_turn(3, lambda: measure("ours"), lambda: measure("peer"))
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert (ours, peer) == ([1, 4, 5], [2, 3, 6])


def test_many_take_turns_too() -> None:
    order: list[str] = []

    def turn(name: str) -> str:
        order.append(name)
        return name

    found = in_rounds(3, {name: partial(turn, name) for name in "abc"})
    assert "".join(order) == "abccbaabc"
    assert found == {name: [name] * 3 for name in "abc"}
