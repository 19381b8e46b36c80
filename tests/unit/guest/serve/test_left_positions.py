# SPDX-License-Identifier: Apache-2.0
"""Where packed rings stood, which an agent tells the next daemon."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.fakes.bar import RUNS, ring
from tests.unit.guest.bench import Bench
from vhostpci_guest.serve.left_positions import LeftPositions
from vhostpci_shared.metadata import AgentRingState, AgentState, RingFlag
from vhostpci_shared.position import Position

PACKED = replace(ring(0, session=2, flags=RUNS | RingFlag.PACKED), base=0x8000)
SPLIT = ring(1, session=2)
LEFT = Position(
    origin=2,
    desc=PACKED.desc,
    driver=PACKED.driver,
    device=PACKED.device,
    size=PACKED.size,
    at=0x8009,
    next=0x8009,
)
NOTHING = Position()


@pytest.fixture
def left() -> LeftPositions:
    """What the agent of all these daemons knows."""
    return LeftPositions()


NewDaemon = Callable[[], Bench]


@pytest.fixture
def new_daemon(left: LeftPositions) -> Iterator[NewDaemon]:
    """Starts a daemon, with metadata of its own, and a link to it; ends the last."""
    benches: list[Bench] = []

    def start() -> Bench:
        if benches:
            benches[-1].close()
        bench = Bench()
        benches.append(bench)
        bench.daemon.publish()
        bench.attach(left)
        return bench

    yield start
    benches[-1].close()


def test_next_daemon_is_told_where_a_packed_ring_stopped(new_daemon: NewDaemon) -> None:
    bench = new_daemon()
    bench.publish(PACKED, SPLIT)
    bench.plane.move(0, 0x8009)
    for _ in range(2):  # it is kept for the daemon after that one, too
        bench = new_daemon()
        assert bench.daemon.metadata.position(0) == NOTHING
        bench.publish()
        assert bench.daemon.agent().state is AgentState.READY
        assert bench.daemon.metadata.position(0) == LEFT
        assert bench.daemon.metadata.position(1) == NOTHING


def test_daemon_is_told_once_and_before_it_sees_an_agent(
    new_daemon: NewDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = new_daemon()
    bench.publish(PACKED, SPLIT)
    bench.plane.move(0, 0x8009)
    bench = new_daemon()
    seen = []

    def look(*_: object) -> None:
        seen.append(bench.daemon.metadata.position(0))

    monkeypatch.setattr(bench.device, "ring", look)
    bench.publish()
    bench.daemon.metadata.write_position(0, NOTHING)
    bench.publish(SPLIT, SPLIT)
    bench.look()
    assert seen[0] == LEFT
    assert seen[-1] == NOTHING


@pytest.mark.parametrize(
    "end",
    [
        lambda bench: bench.plane.stuck.add(0),
        lambda bench: bench.plane.stop_by_itself(0, AgentRingState.BROKEN, ""),
    ],
    ids=["stuck", "broken"],
)
def test_ring_that_did_not_stop_in_order_leaves_nothing(
    new_daemon: NewDaemon, end: Callable[[Bench], None]
) -> None:
    bench = new_daemon()
    bench.publish(PACKED, SPLIT)
    end(bench)
    bench.look()
    bench = new_daemon()
    bench.publish()
    assert bench.daemon.metadata.position(0) == NOTHING


def test_device_of_another_name_is_told_nothing(
    new_daemon: NewDaemon, left: LeftPositions
) -> None:
    left.keep("other", {0: LEFT})
    bench = new_daemon()
    bench.publish()
    assert bench.daemon.metadata.position(0) == NOTHING


def test_what_the_metadata_says_counts_more(
    new_daemon: NewDaemon, left: LeftPositions
) -> None:
    """An arena's metadata outlives the daemon, and another agent may have written."""
    left.keep("net0", {0: LEFT})
    bench = new_daemon()
    newer = replace(LEFT, at=3, next=3)
    bench.daemon.metadata.write_position(0, newer)
    bench.publish()
    assert bench.daemon.metadata.position(0) == newer


def test_ring_that_is_split_now_leaves_nothing(left: LeftPositions) -> None:
    left.keep("net0", {0: LEFT, 1: LEFT})
    left.keep("net0", {0: None})
    bench = Bench()
    left.bring("net0", bench.daemon.metadata)
    assert bench.daemon.metadata.position(0) == NOTHING
    assert bench.daemon.metadata.position(1) == LEFT
    bench.close()
