# SPDX-License-Identifier: Apache-2.0
"""What ping has printed says which of its packets were lost."""

import pytest

from tests.pings import came_back, lost, unbroken


def output(*answered: int) -> str:
    lines = [
        f"64 bytes from 10.9.0.2: icmp_seq={n} ttl=64 time=0.1 ms" for n in answered
    ]
    return "\n".join([*lines, "9 packets transmitted, 9 received, 0% packet loss"])


@pytest.mark.parametrize(
    ("answered", "expected"),
    [
        ((1, 2, 3), 3),
        # The third was slow, so that ping had sent two more.
        ((1, 2, 3, 4, 5), 3),
        ((1, 3, 2), 3),
        ((1, 3, 4), 2),
        ((2, 3, 4), 2),
        ((1, 2), 2),
        ((), 0),
    ],
)
def test_one_that_is_missing_before_another_is_lost(
    answered: tuple[int, ...], expected: int
) -> None:
    assert came_back(output(*answered), 3) == expected


def test_program_that_has_sent_nothing_is_an_error() -> None:
    with pytest.raises(AssertionError, match="Network is unreachable"):
        came_back("ping: connect: Network is unreachable", 3)


def test_gap_is_an_error_and_twice_the_same_is_none() -> None:
    assert unbroken(output(1, 2, 2, 3)) == 3
    assert unbroken(output()) == 0
    with pytest.raises(AssertionError, match=r"lost: \[2\]"):
        unbroken(output(1, 3))


def test_what_no_later_one_came_back_of_may_be_under_way() -> None:
    assert lost(output(1, 3, 6)) == 3
    assert lost(output(1)) == lost(output()) == 0
