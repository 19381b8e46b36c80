# SPDX-License-Identifier: Apache-2.0
"""The agent is killed in the middle of its work: see tests/ringtest/kill.c."""

from pathlib import Path

import pytest

from tests.ringtest.build import build_kill, run


@pytest.fixture(scope="module")
def kill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_kill(tmp_path_factory.mktemp("kill") / "kill")


def refused(kill: Path, case: str, start: str) -> int:
    """Return in how many places a killed agent leaves a ring that cannot go on."""
    done = run(kill, case, start)
    assert (done.returncode, done.stderr) == (0, "")
    stores, refused = map(int, done.stdout.split())
    assert stores > 3
    return refused


starts = pytest.mark.parametrize("start", ["0x8000", "6", "0x8006", "0"])


@starts
@pytest.mark.parametrize(
    "case",
    [
        "one",
        "packets",
        "long-packet",
        "two-long-packets",
        "chains",
        "sent",
        "sent-in-order",
    ],
)
def test_a_successor_goes_on_wherever_the_agent_was_killed(
    kill: Path, case: str, start: str
) -> None:
    assert refused(kill, case, start) == 0


@starts
@pytest.mark.parametrize("case", ["packet-of-tables", "packet-of-chains"])
def test_a_packet_over_chains_that_are_no_single_buffers_leaves_one_bad_moment(
    kill: Path, case: str, start: str
) -> None:
    """There the successor refuses the ring; it never goes on at a wrong place."""
    assert refused(kill, case, start) == 1
