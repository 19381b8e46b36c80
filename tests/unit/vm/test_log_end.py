# SPDX-License-Identifier: Apache-2.0
"""What a failed VM test shows of a log."""

from tests.vm import log_end

PANIC = "Kernel panic - not syncing: timer doesn't work through the IO-APIC"


def log(count: int) -> list[str]:
    return [f"line {number}" for number in range(count)]


def test_last_lines_are_shown() -> None:
    assert log_end.lines("\n".join(log(40))) == log(40)[-log_end.COUNT :]


def test_reason_of_a_panic_is_shown_above_the_addresses_that_follow_it() -> None:
    text = "\n".join([f"[ 2.1] {PANIC}", *log(40)])
    shown = log_end.lines(text)
    assert shown == [f"[ 2.1] {PANIC}", *log(40)[-log_end.COUNT :]]


def test_reason_among_the_last_lines_is_shown_once() -> None:
    text = "\n".join([*log(20), PANIC, "the end"])
    assert log_end.lines(text).count(PANIC) == 1


def test_log_without_a_word_is_said_to_be_empty() -> None:
    for text in ("", "\n \n"):
        assert log_end.lines(text) == ["(nothing)"]
