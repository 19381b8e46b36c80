# SPDX-License-Identifier: Apache-2.0
"""One device: the daemon says something, and the link does it, in the right order."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.bar import (
    FEATURES,
    MEMORY,
    RUNS,
    FakeDevice,
    FakeWindows,
    pair,
    ring,
)
from tests.fakes.plane import FakePlane, FakePort
from tests.unit.guest.bench import Bench
from vhostpci_guest.dataplane.interface import RingRefused
from vhostpci_guest.errors import Unusable
from vhostpci_guest.serve.heartbeat import TICK
from vhostpci_guest.serve.link import FAST, SLOW, Link
from vhostpci_shared import metadata as md
from vhostpci_shared.access import Metadata
from vhostpci_shared.metadata import AgentRingState, AgentState, RingFlag
from vhostpci_shared.wire import ProtocolError


def test_rings_start_when_the_daemon_says_so(bench: Bench) -> None:
    generation = bench.publish(*pair(2))
    assert bench.running == {0, 1}
    assert bench.daemon.agent().generation == generation
    assert bench.daemon.agent().state is AgentState.READY
    assert bench.daemon.ring(0).state is AgentRingState.RUNNING
    assert bench.daemon.poked()


def test_nothing_runs_before_the_daemon_has_beaten_once(bench: Bench) -> None:
    assert bench.link is not None
    bench.daemon.publish(*pair(2))
    bench.link.look()
    assert bench.running == set()
    bench.look()
    assert bench.running == {0, 1}


def test_quiesce_is_answered_after_the_ring_has_stopped(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.plane.move(1, 77)
    bench.daemon.poked()
    generation = bench.publish(ring(session=2), ring(1, session=3, flags=0))
    assert bench.running == {0}
    assert bench.daemon.agent().generation == generation
    assert bench.daemon.ring(1).state is AgentRingState.STOPPED
    assert bench.daemon.ring(1).index == 77
    assert bench.daemon.ring(1).session == 2
    assert bench.daemon.poked()


def test_answer_comes_after_the_stops_and_before_the_starts(bench: Bench) -> None:
    before = bench.publish(*pair(2))
    answered = []

    def watch(what: str, index: int) -> None:
        answered.append((what, index, bench.daemon.agent().generation))

    bench.plane.watch = watch
    after = bench.publish(*pair(3))
    assert answered == [
        ("stop", 0, before),
        ("stop", 1, before),
        ("start", 0, after),
        ("start", 1, after),
    ]


def test_entries_of_the_rings_are_written_before_the_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.publish(*pair(2))
    answers = []

    def write_agent(metadata: Metadata, agent: md.Agent) -> None:
        answers.append((agent.generation, bench.daemon.ring(0).state))
        write(metadata, agent)

    write = Metadata.write_agent
    monkeypatch.setattr(Metadata, "write_agent", write_agent)
    generation = bench.publish(*pair(3, flags=0))
    assert answers[0] == (generation, AgentRingState.STOPPED)


def test_ring_that_does_not_stop_is_not_answered_for(bench: Bench) -> None:
    before = bench.publish(*pair(2))
    bench.plane.stuck = {0}
    bench.publish(*pair(3, flags=0))
    assert bench.daemon.agent().generation == before
    bench.plane.stuck = set()
    bench.look()
    assert bench.running == set()
    assert bench.daemon.agent().generation == before + 2


def test_memory_is_changed_only_when_no_ring_runs(bench: Bench) -> None:
    bench.publish(*pair(2))
    smaller = replace(MEMORY, size=0x80000)
    bench.publish(*pair(3), regions=(smaller,))  # the fake plane checks it
    assert [piece.size for piece in bench.plane.memory] == [0x80000]
    assert bench.running == {0, 1}


def test_ring_goes_on_where_it_stopped_in_the_same_session(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.plane.move(0, 41)
    bench.publish(*pair(2), regions=(replace(MEMORY, size=0x80000),))
    assert bench.plane.starts[-2:] == [(0, 41), (1, 0)]


def test_ring_starts_at_its_base_in_a_new_session(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.publish(ring(session=3, base=9), ring(1, session=2))
    assert bench.plane.starts[-1] == (0, 9)


def test_ring_of_an_agent_that_was_killed_goes_on_where_the_ring_says() -> None:
    bench = Bench()
    wanted = ring(session=5)
    bench.daemon.publish(wanted, ring(1, session=5, flags=0))
    died = md.AgentRing(session=5, state=AgentRingState.RUNNING)
    bench.daemon.metadata.write_agent_ring(0, died)
    bench.device.window.view[wanted.device + 2] = 123
    bench.attach()
    bench.look()
    assert bench.plane.starts == [(0, 123)]
    bench.close()


def test_carrier_follows_the_rings(bench: Bench) -> None:
    bench.publish()
    assert not bench.port.carrier
    bench.publish(*pair(2))
    assert bench.port.carrier
    bench.publish(*pair(3, flags=0))
    bench.ticks(2)
    assert not bench.port.carrier


def test_carrier_outlasts_a_short_stop(bench: Bench) -> None:
    """As when the master's memory grows: a flap would lose what waits in the TAP."""
    for session in range(2, 10, 2):
        bench.publish(*pair(session))
        bench.publish(*pair(session + 1, flags=0))
        bench.ticks(1)
        assert bench.port.carrier


def test_carrier_goes_at_once_with_the_master(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.publish(*pair(3, flags=0), master=False)
    assert not bench.port.carrier


def test_disabled_ring_does_not_run(bench: Bench) -> None:
    bench.publish(*pair(2, flags=RingFlag.STARTED))
    assert bench.running == set()


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
    """A packet in another queue would wait for a driver that does not come."""
    two.publish(*pair(2), *OFF)
    assert two.port.used == {0}
    two.publish(*pair(2), *ON)
    assert two.port.used == {0, 1}


def test_queue_of_a_pair_that_goes_is_left_before_the_daemon_hears_of_it(
    two: Bench,
) -> None:
    """Its answer is what the master waits for, and then it sends to others."""
    before = two.publish(*pair(2), *ON)
    answered: list[int] = []
    two.port.watch = lambda: answered.append(two.daemon.agent().generation)
    two.publish(*pair(2), *OFF)
    assert answered == [before]
    assert two.port.used == {0}


def test_queues_stay_while_rings_only_pause(two: Bench) -> None:
    """What is in them is not lost when the master's memory changes."""
    two.publish(*pair(2), *ON)
    two.port.watch = lambda: pytest.fail("queues come and go")
    more = replace(MEMORY, size=MEMORY.size // 2)
    two.publish(*pair(2), *ON, regions=(more,))
    elsewhere = replace(MEMORY, window=300)
    two.publish(*pair(2), *ON, regions=(elsewhere,))
    assert two.running == set()
    two.publish(*pair(2, flags=0), *(replace(one, flags=RingFlag(0)) for one in ON))
    two.publish(*pair(2), *ON)
    assert two.running == {0, 1, 2, 3}
    two.port.watch = lambda: None


def test_tap_that_is_deleted_holds_up_no_stop(two: Bench) -> None:
    def refuse() -> None:
        raise Unusable("TAP vp0 is gone")

    two.publish(*pair(2), *ON)
    two.port.watch = refuse
    two.publish(*pair(2), *OFF)
    assert two.running == {0, 1}
    two.port.watch = lambda: None


def test_silent_daemon_stops_the_rings_until_it_beats_again(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.plane.move(0, 8)
    bench.ticks(14, daemon=False)
    assert bench.running == {0, 1}
    bench.ticks(1, daemon=False)
    assert bench.running == set()
    assert not bench.port.carrier
    assert bench.daemon.ring(0).state is AgentRingState.STOPPED
    bench.look()
    assert bench.running == {0, 1}
    assert bench.plane.starts[-2] == (0, 8)
    assert bench.port.carrier


def test_counters_go_on_after_a_silence(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.ticks(15, daemon=False)
    bench.look()
    assert len(bench.planes) == 1


def test_silence_is_said_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.publish(*pair(2))
    bench.ticks(40, daemon=False)
    assert caplog.text.count("silent") == 1


def test_our_heart_beats(bench: Bench) -> None:
    bench.publish(*pair(2))
    before = bench.daemon.agent().heartbeat
    bench.ticks(3)
    assert bench.daemon.agent().heartbeat == before + 3


def test_counters_are_told(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.plane.move(0, 5, packets=1234)
    bench.ticks(1)
    assert bench.daemon.ring(0).packets == 1234
    assert bench.daemon.ring(0).index == 5


@pytest.mark.parametrize("state", [AgentRingState.BROKEN, AgentRingState.FENCED])
def test_ring_that_fell_waits_for_a_new_session(
    bench: Bench, state: AgentRingState, caplog: pytest.LogCaptureFixture
) -> None:
    bench.publish(*pair(2))
    bench.daemon.poked()
    bench.plane.stop_by_itself(0, state, "a chain loops")
    bench.look()
    assert bench.daemon.ring(0).state is state
    assert bench.daemon.poked()
    assert "a chain loops" in caplog.text
    bench.publish(*pair(2))
    assert bench.running == {1}
    bench.publish(ring(session=3), ring(1, session=2))
    assert bench.running == {0, 1}


def test_ring_that_saw_the_end_of_its_session_first_is_no_news(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    assert bench.link is not None
    bench.publish(*pair(2))
    bench.daemon.metadata.format()  # the daemon begins to write ...
    bench.plane.stop_by_itself(0, AgentRingState.FENCED, "its session is over")
    bench.link.look()
    bench.publish(*pair(3, flags=0))  # ... and is done
    bench.link.look()
    assert bench.daemon.ring(0).state is AgentRingState.STOPPED
    assert "its session is over" not in caplog.text


def test_carrier_is_off_when_the_last_ring_fell(bench: Bench) -> None:
    bench.publish(*pair(2))
    for index in (0, 1):
        bench.plane.stop_by_itself(index, AgentRingState.FENCED, "moved")
    bench.look()
    bench.ticks(2)
    assert not bench.port.carrier


def test_deleted_tap_ends_us_and_is_not_the_masters_fault(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.port.deleted = True
    bench.plane.stop_by_itself(0, AgentRingState.BROKEN, "the TAP failed")
    with pytest.raises(Unusable, match="gone"):
        bench.look()
    assert bench.daemon.agent().state is AgentState.FAILED
    assert "gone" in bench.daemon.agent().message
    assert bench.daemon.ring(0).state is not AgentRingState.BROKEN


def test_ring_refused_because_its_session_is_over_is_no_news(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.publish()

    class Late(RingRefused):
        """Refused, and meanwhile the daemon has said why."""

        def __init__(self) -> None:
            super().__init__("another session", AgentRingState.FENCED)
            bench.daemon.publish(*pair(3))

    bench.plane.refuse_once = Late
    bench.publish(*pair(2))
    bench.look()
    assert bench.running == {0, 1}
    assert "can't run" not in caplog.text


def test_ring_that_is_refused_is_reported_broken(bench: Bench) -> None:
    bench.publish()
    bench.plane.refuses[0] = RingRefused("size 3")
    bench.publish(*pair(2))
    assert bench.running == {1}
    assert bench.daemon.ring(0).state is AgentRingState.BROKEN


def test_hostile_metadata_stops_all_is_said_once_and_looked_at_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.publish(*pair(2))
    for _ in range(2):
        bad = bench.publish(*pair(2), regions=(replace(MEMORY, window=9),))
    assert bench.running == set()
    assert not bench.port.carrier
    assert bench.daemon.agent().state is AgentState.FAILED
    assert "window 9" in bench.daemon.agent().message
    assert bench.daemon.agent().generation == bad
    assert caplog.text.count("window 9") == 1
    bench.publish(*pair(3))
    assert bench.running == {0, 1}
    assert bench.daemon.agent().state is AgentState.READY
    assert bench.daemon.agent().message == ""


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, md.DAEMON_END - 1), st.binary(min_size=1, max_size=64)
        ),
        max_size=8,
    )
)
def test_any_bytes_in_the_metadata_leave_the_link_alive(
    writes: list[tuple[int, bytes]],
) -> None:
    bench = Bench()
    bench.daemon.publish()
    bench.attach()
    bench.publish(*pair(2))
    view = bench.device.window.view[-md.SIZE :]
    for at, data in writes:
        data = data[: md.DAEMON_END - at]
        view[at : at + len(data)] = data
        bench.ticks(1)
    view.release()
    bench.daemon.metadata.format()
    bench.publish(*pair(3))
    assert bench.running == {0, 1}
    bench.close()


def test_metadata_that_is_being_written_is_looked_at_again_soon(bench: Bench) -> None:
    assert bench.link is not None
    bench.publish(*pair(2))
    bench.daemon.metadata.format()  # odd from here on
    bench.look()
    assert bench.running == {0, 1}
    assert bench.link.interval == FAST


def test_device_without_metadata_is_refused() -> None:
    bench = Bench()
    bench.device.window.view[-md.SIZE :] = bytes(md.SIZE)
    with pytest.raises(ProtocolError, match="no vhostpci metadata"):
        bench.attach()
    bench.close()


def test_unknown_version_is_refused() -> None:
    bench = Bench()
    bench.device.window.view[-md.SIZE + 8] = 2
    with pytest.raises(ProtocolError, match="version 2"):
        bench.attach()
    bench.close()


def test_window_too_small_for_metadata_is_refused() -> None:
    device = FakeDevice(size=0x1000)
    with pytest.raises(ProtocolError, match="smaller than the metadata"):
        Link(device, FakePort(), FakePlane, FakeWindows())
    device.close()


def test_device_that_is_only_a_window_is_refused() -> None:
    device = FakeDevice(window=3)
    with pytest.raises(Unusable, match="IVPosition 3"):
        Link(device, FakePort(), FakePlane, FakeWindows())
    device.close()


def test_too_few_vectors_are_told_to_the_daemon_and_the_user() -> None:
    bench = Bench(vectors=2)
    bench.daemon.publish()
    bench.attach()
    bench.ticks(1, daemon=False)
    assert bench.daemon.agent().state is AgentState.NONE
    with pytest.raises(Unusable, match="vectors=3"):
        bench.look()
    bench.close()


def test_what_failed_stays_said_when_we_leave() -> None:
    bench = Bench(vectors=2)
    bench.daemon.publish()
    link = bench.attach()
    with pytest.raises(Unusable):
        bench.look()
    link.close()
    bench.link = None
    assert bench.daemon.agent().state is AgentState.FAILED
    assert "vectors=3" in bench.daemon.agent().message
    assert bench.daemon.poked()
    bench.close()


def test_vectors_that_are_still_to_come_are_waited_for() -> None:
    bench = Bench(vectors=3)
    bench.daemon.publish(*pair(2))
    bench.device.vector_count, bench.device.settled = 1, False
    bench.attach()
    bench.look()
    assert bench.daemon.agent().generation == 0
    bench.device.vector_count = 3
    bench.look()
    assert bench.running == {0, 1}
    bench.close()


def test_ring_waits_for_the_peer_that_it_is_to_call(bench: Bench) -> None:
    assert bench.link is not None
    bench.device.absent = {md.FIRST_CALL_PEER}
    bench.publish(*pair(2))
    assert bench.running == set()
    assert bench.link.interval == FAST
    bench.device.absent = set()
    bench.look()
    assert bench.running == {0, 1}
    assert bench.link.interval == TICK


def test_ring_without_call_never_interrupts(bench: Bench) -> None:
    wanted = RUNS & ~RingFlag.CALL
    bench.publish(*pair(2, flags=wanted))
    assert [start.call for start in bench.plane.running.values()] == [None, None]


def test_ring_knows_its_vector_its_doorbell_and_its_entry(bench: Bench) -> None:
    bench.publish(*pair(2))
    conf = bench.plane.running[1]
    window = bench.device.window
    entry = window.size - md.SIZE + md.RINGS + md.Ring.layout.size
    assert conf.kick_fd == bench.device.vector(2)
    assert conf.call == bench.device.doorbell(md.FIRST_CALL_PEER, 1)
    assert conf.meta_addr == window.address + entry
    assert conf.session == 2
    assert conf.features == FEATURES


def test_more_queue_pairs_get_a_new_plane(bench: Bench) -> None:
    bench.device.vector_count = 5
    bench.publish(*pair(2))
    four = [ring(index, session=3) for index in range(4)]
    bench.publish(*four)
    assert len(bench.planes) == 2
    assert bench.planes[0].closed
    assert bench.port.queues == 2


@pytest.mark.parametrize(
    ("interrupts", "master", "interval"),
    [(True, True, TICK), (False, True, FAST), (False, False, SLOW)],
    ids=["interrupts", "polling", "polling, with no master"],
)
def test_looks_are_as_frequent_as_they_must_be(
    interrupts: bool, master: bool, interval: float
) -> None:
    bench = Bench(interrupts=interrupts)
    bench.daemon.publish()
    link = bench.attach()
    bench.publish(master=master)
    assert link.interval == interval
    bench.close()


def test_interrupt_is_taken(bench: Bench) -> None:
    bench.device.interrupt(md.METADATA_VECTOR)
    bench.look()
    assert not bench.device.interrupted(md.METADATA_VECTOR)


def test_end_stops_the_rings_and_says_goodbye() -> None:
    bench = Bench()
    bench.daemon.publish()
    link = bench.attach()
    bench.publish(*pair(2))
    bench.plane.move(0, 3)
    bench.daemon.poked()
    link.close()
    bench.link = None
    assert bench.plane.stops == [0, 1]
    assert bench.plane.closed
    assert bench.daemon.agent().state is AgentState.NONE
    assert bench.daemon.ring(0).state is AgentRingState.STOPPED
    assert bench.daemon.ring(0).index == 3
    assert bench.daemon.poked()
    assert not bench.port.carrier
    bench.close()


def test_status_says_how_each_ring_is(bench: Bench) -> None:
    assert bench.link is not None
    bench.publish(*pair(2))
    bench.plane.move(0, 3, packets=4)
    status = bench.link.status()
    assert status["tap"] == "vp0"
    assert status["carrier"]
    assert status["rings"][0]["packets"] == 4
    assert status["rings"][0]["state"] == "running"


def test_device_that_is_left_alone_runs_nothing_and_says_why(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    assert bench.link is not None
    bench.publish(*pair(2))
    bench.plane.move(0, 5)
    for _ in range(2):
        bench.link.suspend("the TAP is gone")
    assert bench.plane.closed
    assert bench.port.doings[-1] == "close"
    assert not bench.port.carrier
    assert bench.daemon.agent().state is AgentState.FAILED
    assert bench.daemon.ring(0).state is AgentRingState.STOPPED
    assert bench.daemon.ring(0).index == 5
    assert caplog.text.count("the TAP is gone") == 1
    bench.ticks(3)
    assert len(bench.planes) == 1


def test_device_that_was_left_alone_starts_where_it_stopped(bench: Bench) -> None:
    assert bench.link is not None
    bench.publish(*pair(2))
    bench.plane.move(0, 5)
    bench.link.suspend("no thread")
    bench.publish(*pair(2))
    assert bench.running == {0, 1}
    assert bench.plane.starts[0] == (0, 5)
    assert bench.daemon.agent().state is AgentState.READY


def test_ring_that_never_stopped_starts_where_the_ring_says(bench: Bench) -> None:
    assert bench.link is not None
    bench.publish(*pair(2))
    bench.plane.move(1, 9)
    bench.plane.stuck = {1}
    bench.link.suspend("no thread")
    entry = bench.device.window.view
    used = ring(1, session=2).device + 2
    entry[used : used + 2] = (77).to_bytes(2, "little")
    bench.publish(*pair(2))
    assert (1, 77) in bench.plane.starts


def test_vectors_that_come_late_are_told(bench: Bench) -> None:
    bench.device.vector_count = 17
    bench.ticks(1)
    assert bench.daemon.agent().vectors == 17


def test_each_tick_looks_after_the_bridge(bench: Bench) -> None:
    bench.ticks(2)
    assert bench.port.bridge_looks == 2
