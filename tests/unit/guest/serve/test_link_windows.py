# SPDX-License-Identifier: Apache-2.0
"""One device whose master's memory is in further windows, which come and go."""

import json

import pytest

from tests.fakes.bar import SIZE, pair
from tests.unit.guest.bench import Bench
from vhostpci_guest.serve.heartbeat import TICK
from vhostpci_guest.serve.link import FAST
from vhostpci_guest.serve.window_speed import LOOKS, Speed
from vhostpci_shared import metadata as md
from vhostpci_shared.metadata import AgentRingState, AgentState

THERE, LATE = 4711, 4712
ABOVE = md.Region(guest_addr=1 << 32, size=SIZE, window=LATE, offset=0)
BELOW = md.Region(guest_addr=0, size=SIZE, window=THERE, offset=0)


def test_memory_may_be_in_any_windows(bench: Bench) -> None:
    windows = [bench.windows.plug(number).window for number in (THERE, LATE)]
    bench.publish(*pair(2), regions=(BELOW, ABOVE))
    assert bench.running == {0, 1}
    addresses = [piece.host_addr for piece in bench.plane.memory]
    assert addresses == [window.address for window in windows]


def test_rings_wait_for_a_window_and_the_answer_does_not(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bench.windows.plug(THERE)
    generation = bench.publish(*pair(2), regions=(BELOW, ABOVE))
    assert bench.daemon.agent().generation == generation
    assert bench.daemon.agent().state is AgentState.READY
    assert bench.running == set()
    assert not bench.port.carrier
    bench.ticks(3)
    assert caplog.text.count("waits for window 4712") == 1
    bench.windows.plug(LATE)
    bench.look()
    assert bench.running == {0, 1}
    assert bench.port.carrier


def test_carrier_stays_on_while_the_slave_vm_plugs_a_window(bench: Bench) -> None:
    """Packets wait in the TAP then, and none is dropped."""
    bench.windows.plug(THERE)
    bench.publish(*pair(2), regions=(BELOW,))
    bench.publish(*pair(3), regions=(BELOW, ABOVE))
    assert bench.running == set()
    bench.ticks(24)
    assert bench.port.carrier
    bench.windows.plug(LATE)
    bench.look()
    assert bench.running == {0, 1}
    assert bench.port.carrier


def test_carrier_goes_off_if_a_window_does_not_come(bench: Bench) -> None:
    bench.windows.plug(THERE)
    bench.publish(*pair(2), regions=(BELOW,))
    bench.publish(*pair(3), regions=(BELOW, ABOVE))
    bench.ticks(25)
    assert not bench.port.carrier


def test_link_that_waits_for_a_window_sleeps(bench: Bench) -> None:
    link = bench.link
    assert link is not None
    bench.publish(*pair(2), regions=(ABOVE,))
    assert not link.needs_look
    assert link.interval == TICK
    bench.windows.plug(LATE)
    assert link.needs_look
    assert link.interval == FAST


def test_window_may_come_before_it_is_named(bench: Bench) -> None:
    bench.windows.plug(THERE)
    bench.look()
    bench.publish(*pair(2), regions=(BELOW,))
    assert bench.running == {0, 1}


def test_rings_stop_at_once_when_a_window_of_the_memory_is_missing(
    bench: Bench,
) -> None:
    bench.windows.plug(THERE)
    bench.publish(*pair(2), regions=(BELOW,))
    bench.plane.move(0, 5)
    bench.plane.move(1, 6)
    bench.publish(*pair(2), regions=(BELOW, ABOVE))
    assert bench.running == set()
    assert bench.daemon.ring(0).state is AgentRingState.STOPPED
    bench.windows.plug(LATE)
    bench.look()
    assert bench.plane.starts[-2:] == [(0, 5), (1, 6)]


def test_window_is_released_after_the_rings_stop_and_before_the_answer(
    bench: Bench,
) -> None:
    before = [bench.windows.plug(number) for number in (THERE, LATE)]
    bench.publish(*pair(2), regions=(BELOW, ABOVE))
    seen = []

    def watch() -> None:
        memory = [piece.guest_addr for piece in bench.plane.memory]
        seen.append((bench.running, memory, bench.daemon.agent().generation))

    bench.windows.watch = watch
    answered = bench.daemon.agent().generation
    bench.publish(*pair(3), regions=(BELOW,))
    assert seen == [(set(), [0], answered)]
    assert [device.closed for device in before] == [False, True]
    assert bench.running == {0, 1}


@pytest.mark.parametrize("daemon", ["alive", "silent"])
def test_unplugged_window_is_released_after_the_rings_stop(
    bench: Bench, daemon: str
) -> None:
    device = bench.windows.plug(THERE)
    bench.publish(*pair(2), regions=(BELOW,))
    if daemon == "silent":
        bench.ticks(15, daemon=False)
    running: list[set[int]] = []
    bench.windows.watch = lambda: running.append(bench.running)
    bench.windows.pull(THERE)
    assert bench.link is not None
    bench.link.look()
    assert running == [set()]
    assert device.closed
    assert bench.plane.memory == ()
    bench.look()
    assert bench.running == set()
    bench.windows.plug(THERE)
    bench.look()
    assert bench.running == {0, 1}


def test_unplugged_window_stays_mapped_while_a_ring_does_not_stop(bench: Bench) -> None:
    device = bench.windows.plug(THERE)
    bench.publish(*pair(2), regions=(BELOW,))
    bench.plane.stuck = {1}
    bench.windows.pull(THERE)
    bench.look()
    assert not device.closed
    assert bench.link is not None
    assert bench.link.interval == FAST
    bench.plane.stuck = set()
    bench.look()
    assert device.closed


def test_window_that_is_plugged_again_is_used_at_its_new_address(bench: Bench) -> None:
    bench.windows.plug(THERE)
    bench.publish(*pair(2), regions=(BELOW,))
    bench.windows.pull(THERE)
    again = bench.windows.plug(THERE)
    bench.look()
    assert bench.running == {0, 1}
    assert [piece.host_addr for piece in bench.plane.memory] == [again.window.address]


def test_region_past_the_end_of_its_window_fails_the_device(bench: Bench) -> None:
    bench.windows.plug(THERE, size=SIZE // 2)
    bench.publish(*pair(2), regions=(BELOW,))
    assert bench.daemon.agent().state is AgentState.FAILED
    assert "does not fit window 4711" in bench.daemon.agent().message
    assert bench.windows.wanted == set()


def test_windows_are_released_when_the_link_ends(bench: Bench) -> None:
    device = bench.windows.plug(THERE)
    bench.publish(*pair(2), regions=(BELOW,))
    assert bench.link is not None
    bench.link.close()
    bench.link = None
    assert device.closed


def test_status_lists_the_windows(bench: Bench) -> None:
    assert bench.link is not None
    shows = bench.windows.plug(THERE)
    bench.publish(*pair(2), regions=(BELOW, ABOVE))
    status = json.loads(json.dumps(bench.link.status()))
    assert status["windows"] == [
        {"id": THERE, "device": shows.name, "size": SIZE, "speed": None},
        {"id": LATE, "device": None, "size": None, "speed": None},
    ]


def test_status_has_the_rate_of_each_window(bench: Bench) -> None:
    assert bench.link is not None
    bench.windows.plug(THERE)
    bench.publish(*pair(2), regions=(BELOW,))
    bench.ticks(1)
    status = json.loads(json.dumps(bench.link.status()))
    assert status["speed"] == {"mbps": 9000.0, "own_mbps": 10000.0, "slow": False}
    assert status["windows"][0]["speed"] == status["speed"]


def test_window_that_looks_uncached_is_logged_and_served(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.speed = Speed(window=1e8, own=10e9)
    bench.publish(*pair(2))
    bench.ticks(LOOKS)
    assert "window 0 reads 100 MB/s" in caplog.text
    assert bench.running == {0, 1}


def test_window_that_is_plugged_late_is_measured_too(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.publish(*pair(2), regions=(BELOW,))
    bench.ticks(LOOKS)
    bench.speed = Speed(window=1e8, own=10e9)
    bench.windows.plug(THERE)
    bench.ticks(1 + LOOKS)
    assert "window 4711 reads 100 MB/s" in caplog.text
    assert "window 0" not in caplog.text
