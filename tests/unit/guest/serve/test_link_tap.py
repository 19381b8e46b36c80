# SPDX-License-Identifier: Apache-2.0
"""The TAP as the link uses it: its carrier, its queues, and its end."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.fakes.bar import (
    MEMORY,
    RUNS,
    pair,
    ring,
)
from tests.unit.guest.bench import Bench
from vhostpci_guest.errors import Unusable
from vhostpci_shared.metadata import AgentRingState, AgentState, RingFlag


def test_carrier_follows_the_rings(bench: Bench) -> None:
    bench.publish()
    assert not bench.port.carrier
    bench.publish(*pair(2))
    assert bench.port.carrier
    bench.publish(*pair(3, flags=0))
    bench.ticks(2)
    assert not bench.port.carrier


def test_carrier_outlasts_a_short_stop(bench: Bench) -> None:
    """As when the master's memory grows, while packets wait in the TAP."""
    for session in range(2, 10, 2):
        bench.publish(*pair(session))
        bench.publish(*pair(session + 1, flags=0))
        bench.ticks(1)
        assert bench.port.carrier


def test_carrier_goes_off_at_once_when_the_master_disconnects(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.publish(*pair(3, flags=0), master=False)
    assert not bench.port.carrier


@pytest.fixture
def two() -> Iterator[Bench]:
    """A living link with room for two queue pairs."""
    bench = Bench(vectors=5)
    bench.attach()
    yield bench
    bench.close()


OFF = [ring(index, session=2, flags=RingFlag.STARTED) for index in (2, 3)]


ON = [ring(index, session=3) for index in (2, 3)]


def test_tap_uses_the_queues_of_pairs_that_run(two: Bench) -> None:
    """A packet in the queue of a disabled pair would never be sent."""
    two.publish(*pair(2), *OFF)
    assert two.port.used == {0}
    two.publish(*pair(2), *ON)
    assert two.port.used == {0, 1}


def test_queue_of_a_disabled_pair_is_detached_before_the_answer(
    two: Bench,
) -> None:
    """A front-end that waits for the answer uses the queue no more after it."""
    before = two.publish(*pair(2), *ON)
    answered: list[int] = []
    two.port.watch = lambda: answered.append(two.daemon.agent().generation)
    two.publish(*pair(2), *OFF)
    assert answered == [before]
    assert two.port.used == {0}


def test_queue_of_a_disabled_pair_is_detached_before_its_ring_stops(two: Bench) -> None:
    """What the kernel puts into it between the two would be lost."""
    two.publish(*pair(2), *ON)
    running: list[set[int]] = []
    two.port.watch = lambda: running.append(set(two.running))
    two.publish(*pair(2), *OFF)
    assert running == [{0, 1, 2, 3}]
    assert two.running == {0, 1}


def test_queue_is_attached_when_the_pairs_receive_ring_runs(two: Bench) -> None:
    """What came before would be thrown away, as if it were for an earlier driver."""
    two.publish(*pair(2), *OFF)
    seen: list[tuple[set[int], list[int]]] = []
    two.port.watch = lambda: seen.append((set(two.running), two.port.discarded.copy()))
    two.publish(*pair(2), *ON)
    assert seen == [({0, 1, 2, 3}, two.port.discarded)]


def test_queue_is_not_attached_while_the_receive_ring_waits_for_its_peer(
    two: Bench,
) -> None:
    two.publish(*pair(2), *OFF)
    two.device.absent = {9}
    two.publish(*pair(2), replace(ON[0], call_peer=9), ON[1])
    assert two.running == {0, 1, 3}
    assert two.port.used == {0}
    two.device.absent = set()
    two.look()
    assert two.running == {0, 1, 2, 3}
    assert two.port.used == {0, 1}


def test_queues_stay_attached_while_rings_only_pause(two: Bench) -> None:
    """So the packets in them are not lost when the master's memory changes."""
    two.publish(*pair(2), *ON)
    two.port.watch = lambda: pytest.fail("queues were attached or detached")
    more = replace(MEMORY, size=MEMORY.size // 2)
    two.publish(*pair(2), *ON, regions=(more,))
    elsewhere = replace(MEMORY, window=300)
    two.publish(*pair(2), *ON, regions=(elsewhere,))
    assert two.running == set()
    two.publish(*pair(2, flags=0), *(replace(one, flags=RingFlag(0)) for one in ON))
    two.publish(*pair(2), *ON)
    assert two.running == {0, 1, 2, 3}
    two.port.watch = lambda: None


def test_queue_of_the_tap_is_emptied_for_a_new_driver(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.plane.move(0, 33)
    bench.port.discarded.clear()
    bench.publish(*pair(3, flags=0))
    bench.set_used(0, 0)
    bench.publish(*pair(4))
    assert bench.port.discarded == [0]


def test_queue_of_the_pair_whose_driver_is_new_is_emptied(two: Bench) -> None:
    two.publish(*pair(2), *OFF)
    two.port.discarded.clear()
    two.publish(*pair(2), *ON)
    assert two.port.discarded == [1]


def test_queue_of_the_tap_stays_when_the_masters_memory_changes(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.plane.move(0, 33)
    bench.port.discarded.clear()
    bench.publish(*pair(3, flags=0))
    bench.publish(ring(session=4, base=33), ring(1, session=4))
    assert bench.running == {0, 1}
    assert bench.port.discarded == []


def test_queue_of_the_tap_is_emptied_for_another_master_at_the_same_index(
    bench: Bench,
) -> None:
    bench.publish(*pair(2))
    bench.plane.move(0, 33)
    bench.port.discarded.clear()
    bench.publish(*pair(3, flags=0), master=False)
    bench.publish(ring(session=4, base=33), ring(1, session=4))
    assert bench.port.discarded == [0]


def test_deleted_tap_ends_the_link_also_while_no_ring_runs(bench: Bench) -> None:
    bench.publish(*pair(2, flags=0))
    bench.port.deleted = True
    with pytest.raises(Unusable, match="gone"):
        bench.ticks(1)
    assert bench.daemon.agent().state is AgentState.FAILED


@pytest.mark.parametrize(
    ("told", "runs", "expected"), [(1400, RUNS, 1400), (0, RUNS, 0), (1400, 0, 9000)]
)
def test_mtu_is_followed_once_rings_run(
    bench: Bench, told: int, runs: int, expected: int
) -> None:
    """A front-end that connects says its MTU later: until then the last one stays."""
    bench.publish(*pair(2), mtu=9000)
    bench.publish(*pair(3, flags=runs), mtu=told)
    assert bench.port.told_mtu == expected


def test_deleted_tap_does_not_delay_the_stop_of_a_ring(two: Bench) -> None:
    def refuse() -> None:
        raise Unusable("TAP vp0 is gone")

    two.publish(*pair(2), *ON)
    two.port.watch = refuse
    two.publish(*pair(2), *OFF)
    assert two.running == {0, 1}
    two.port.watch = lambda: None


def test_carrier_goes_off_when_all_rings_are_fenced(bench: Bench) -> None:
    bench.publish(*pair(2))
    for index in (0, 1):
        bench.plane.stop_by_itself(index, AgentRingState.FENCED, "moved")
    bench.look()
    bench.ticks(2)
    assert not bench.port.carrier


def test_deleted_tap_ends_the_link_and_reports_no_broken_ring(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.port.deleted = True
    bench.plane.stop_by_itself(0, AgentRingState.BROKEN, "the TAP failed")
    with pytest.raises(Unusable, match="gone"):
        bench.look()
    assert bench.daemon.agent().state is AgentState.FAILED
    assert "gone" in bench.daemon.agent().message
    assert bench.daemon.ring(0).state is not AgentRingState.BROKEN


def test_each_tick_follows_the_bridge(bench: Bench) -> None:
    bench.ticks(2)
    assert bench.port.bridge_looks == 2
