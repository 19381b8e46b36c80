# SPDX-License-Identifier: Apache-2.0
"""Rings that failed for a reason that may pass are started again, by the agent."""

import pytest

from tests.fakes.bar import pair, ring
from tests.unit.guest.bench import Bench
from vhostpci_guest.dataplane.faults import Fault
from vhostpci_guest.serve.retries import FIRST, SOUND, Retries
from vhostpci_shared import metadata as md
from vhostpci_shared.metadata import AgentRingState


def fail(bench: Bench, index: int = 0, fault: Fault = Fault.MEMORY) -> None:
    """Let a ring stop because of its TAP or its memory."""
    bench.plane.stop_by_itself(index, AgentRingState.BROKEN, "EFAULT", fault)
    bench.look()


@pytest.mark.parametrize("fault", [Fault.TAP, Fault.MEMORY])
def test_failed_ring_is_started_again_where_it_stopped(
    bench: Bench, fault: Fault
) -> None:
    bench.publish(*pair(2))
    bench.plane.move(0, 33)
    fail(bench, fault=fault)
    assert bench.running == {1}
    bench.ticks(FIRST - 1)
    assert bench.running == {1}
    bench.ticks(1)
    assert bench.running == {0, 1}
    assert bench.plane.starts[-1] == (0, 33)


def test_failed_ring_is_not_reported_as_broken_by_the_driver(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.publish(*pair(2))
    bench.daemon.poked()
    fail(bench)
    assert bench.daemon.ring(0).state is AgentRingState.STOPPED
    assert bench.daemon.poked()
    assert "EFAULT" in caplog.text


def test_carrier_is_off_at_once_while_the_receive_ring_waits(bench: Bench) -> None:
    bench.publish(*pair(2))
    assert bench.port.carrier
    fail(bench)
    assert not bench.port.carrier
    bench.ticks(FIRST)
    assert bench.port.carrier


def test_carrier_stays_while_the_transmit_ring_waits(bench: Bench) -> None:
    bench.publish(*pair(2))
    fail(bench, index=1)
    assert bench.port.carrier


def test_carrier_is_off_while_the_receive_ring_is_broken(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.plane.stop_by_itself(0, AgentRingState.BROKEN, "a chain loops")
    bench.look()
    assert not bench.port.carrier
    bench.publish(*pair(3))
    assert bench.port.carrier


def test_generation_that_changes_nothing_does_not_shorten_the_pause(
    bench: Bench,
) -> None:
    bench.publish(*pair(2))
    fail(bench)
    bench.publish(*pair(2))
    assert bench.running == {1}


def test_new_session_starts_the_ring_at_once(bench: Bench) -> None:
    bench.publish(*pair(2))
    fail(bench)
    bench.publish(ring(session=3), ring(1, session=2))
    assert bench.running == {0, 1}


def test_failure_that_repeats_is_logged_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.publish(*pair(2))
    for _ in range(5):
        fail(bench)
        while 0 not in bench.running:
            bench.ticks(1)
    assert caplog.text.count("EFAULT") == 1
    bench.ticks(SOUND)
    fail(bench)
    assert caplog.text.count("EFAULT") == 2


def test_broken_ring_of_an_earlier_session_does_not_take_the_carrier(
    bench: Bench,
) -> None:
    """Its next driver's ring waits for its peer, and will run."""
    bench.publish(*pair(2))
    bench.plane.stop_by_itself(0, AgentRingState.BROKEN, "a chain loops")
    bench.look()
    bench.device.absent = {md.FIRST_CALL_PEER}
    bench.publish(ring(session=3), ring(1, session=2, call_peer=md.FIRST_CALL_PEER + 1))
    bench.device.absent = set()
    assert bench.port.carrier


@pytest.mark.parametrize(("ran", "again"), [(SOUND - 1, True), (SOUND, False)])
def test_ring_that_ran_for_a_time_fails_for_the_first_time(
    ran: int, *, again: bool
) -> None:
    retries = Retries()
    assert retries.failed(0, session=1)
    for _ in range(FIRST + ran):
        retries.tick()
    assert retries.failed(0, session=1) is not again


def test_failure_in_another_session_is_the_first_one() -> None:
    retries = Retries()
    for session in (1, 2, 3):
        assert retries.failed(0, session)
        for _ in range(FIRST):
            assert retries.waits(0, session)
            retries.tick()
        assert not retries.waits(0, session)


def test_pause_doubles_up_to_a_limit() -> None:
    retries = Retries()
    pauses = []
    for _ in range(8):
        retries.failed(0, session=1)
        pauses.append(0)
        while retries.waits(0, session=1):
            retries.tick()
            pauses[-1] += 1
        assert retries.due
    assert pauses == [5, 10, 20, 40, 80, 160, 160, 160]
