# SPDX-License-Identifier: Apache-2.0
"""The log of what other processes cause: a few lines of each kind, then a number."""

import logging
from collections.abc import Callable

import pytest

from tests.fakes.loop import ManualLoop
from vhostpci_host.device.peer_log import BURST, BURST_ALL, LOOK, MOST, WINDOW, PeerLog


@pytest.fixture
def loop() -> ManualLoop:
    return ManualLoop()


@pytest.fixture
def peer_log(loop: ManualLoop, caplog: pytest.LogCaptureFixture) -> PeerLog:
    caplog.set_level(logging.INFO)
    return PeerLog("dev", loop)


Lines = Callable[[], list[str]]


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """Return the lines that a user sees, which are not at debug level."""
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.levelno > logging.DEBUG
    ]


def test_flood_of_one_kind_is_a_few_lines_and_a_count(
    peer_log: PeerLog, loop: ManualLoop, lines: Lines
) -> None:
    for number in range(3100):
        peer_log.warn(f"refused {number}", "refusal of pid 7")
    assert len(lines()) == BURST
    loop.advance(WINDOW + LOOK)
    left_out = 3100 - BURST
    assert lines()[BURST:] == [
        f"dev: {left_out} more lines like this one were left out: refused 3099"
    ]


def test_other_process_is_still_heard_during_a_flood(
    peer_log: PeerLog, lines: Lines
) -> None:
    for number in range(100):
        peer_log.warn(f"refused {number}", "refusal of pid 7")
    peer_log.warn("refused it", "refusal of pid 8")
    assert lines()[-1] == "dev: refused it"


def test_process_that_forks_for_each_line_is_limited_too(
    peer_log: PeerLog, lines: Lines
) -> None:
    for pid in range(10_000):
        peer_log.info("front-end connected", f"pid {pid}")
    # One report for each kind that was forgotten would be as bad as the flood.
    assert len(lines()) <= BURST_ALL + 1


def test_kind_may_be_logged_again_in_the_next_window(
    peer_log: PeerLog, loop: ManualLoop, lines: Lines
) -> None:
    for _ in range(3):
        for number in range(BURST):
            peer_log.info(f"connected {number}", "connected")
        loop.advance(WINDOW)
    assert len(lines()) == 3 * BURST


def test_warning_that_repeats_is_logged_once_and_counted(
    peer_log: PeerLog, loop: ManualLoop, lines: Lines
) -> None:
    for _ in range(4):
        peer_log.warn_once("front-end (pid 7) refused: pid 5 is connected")
        peer_log.warn_once("front-end (pid 8) refused: pid 5 is connected")
    assert len(lines()) == 2
    loop.advance(WINDOW + LOOK)
    assert [line.partition(" (pid")[0] for line in lines()[2:]] == [
        "dev: 3 more lines like this one were left out: front-end"
    ] * 2


def test_close_reports_what_was_left_out(peer_log: PeerLog, lines: Lines) -> None:
    for _ in range(5):
        peer_log.warn_once("front-end (pid 7) refused")
    peer_log.close()
    assert "4 more lines" in lines()[-1]


def test_number_of_kinds_that_are_remembered_is_bounded(peer_log: PeerLog) -> None:
    for pid in range(10 * MOST):
        peer_log.info("connected", f"pid {pid}")
    assert len(peer_log._kinds) <= MOST


def test_lines_left_out_of_a_kind_that_is_forgotten_are_counted(
    peer_log: PeerLog, lines: Lines
) -> None:
    for number in range(BURST + 5):
        peer_log.warn(f"refused {number}", "refusal of pid 7")
    for pid in range(MOST):
        peer_log.info("connected", f"pid {pid}")
    peer_log.close()
    assert "dev: 5 more lines like this one were left out: refused 10" in lines()


def test_oldest_kind_is_forgotten_for_a_new_one(
    peer_log: PeerLog, lines: Lines
) -> None:
    for pid in range(MOST + 1):
        peer_log.warn_once(f"pid {pid}: refused")
    for pid in range(1, MOST + 1):
        peer_log.warn_once(f"pid {pid}: refused")
    assert len(lines()) == MOST + 1
    peer_log.warn_once("pid 0: refused")
    assert len(lines()) == MOST + 2
