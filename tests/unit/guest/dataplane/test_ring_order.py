# SPDX-License-Identifier: Apache-2.0
"""What happens between two accesses of the ring code to the master's memory.

The programs are in C, see tests/ringtest/README.md: a simulated machine lets the
master act between any two accesses, and reorders as much as a real one may.
"""

from pathlib import Path

import pytest

from tests.ringtest.build import PACKED, build_on_machine, run

starts = pytest.mark.parametrize("start", ["0", str(2**16 - 2)])

both = pytest.mark.parametrize("mode", ["flags", "event_idx"])


FORMATS: dict[str, tuple[str, ...]] = {"split": (), "packed": (PACKED,)}


@pytest.fixture(scope="module", params=FORMATS)
def order(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    program = tmp_path_factory.mktemp("order") / "order"
    return build_on_machine(program, "order.c", *FORMATS[request.param])


@pytest.fixture(scope="module")
def fetch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_on_machine(tmp_path_factory.mktemp("fetch") / "fetch", "fetch.c")


@pytest.fixture(scope="module")
def fetch_packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("fetch") / "fetch"
    return build_on_machine(program, "fetch.c", PACKED)


def check(program: Path, *arguments: str) -> None:
    done = run(program, *arguments)
    assert (done.returncode, done.stderr) == (0, "")


@starts
@both
def test_a_chain_offered_at_any_moment_of_falling_asleep_is_seen_or_kicked_for(
    order: Path, mode: str, start: str
) -> None:
    check(order, "kicks", mode, start)


@starts
@both
def test_an_interrupt_asked_for_at_any_moment_of_an_update_is_sent_or_not_needed(
    order: Path, mode: str, start: str
) -> None:
    check(order, "calls", mode, start)


@starts
@both
def test_what_makes_a_chain_available_comes_with_its_descriptors(
    order: Path, mode: str, start: str
) -> None:
    check(order, "avail", mode, start)


@starts
@both
def test_what_makes_chains_used_comes_with_their_ids_and_lengths(
    order: Path, mode: str, start: str
) -> None:
    check(order, "used", mode, start)


@starts
@pytest.mark.parametrize(
    "chain",
    [
        "direct",
        "indirect",
        "unaligned",
        "direct-then-indirect",
        "bad-head",
        "bad-next",
        "bad-length",
        "bad-table-length",
    ],
)
def test_a_value_that_changes_after_it_was_read_changes_nothing(
    fetch: Path, chain: str, start: str
) -> None:
    check(fetch, chain, start)


@starts
@pytest.mark.parametrize(
    "chain",
    [
        "direct",
        "indirect",
        "unaligned",
        "bad-length",
        "bad-direction",
        "bad-table-length",
    ],
)
def test_a_value_of_a_packed_ring_that_changes_after_it_was_read_changes_nothing(
    fetch_packed: Path, chain: str, start: str
) -> None:
    check(fetch_packed, chain, start)
