# SPDX-License-Identifier: Apache-2.0
"""One link: it follows the daemon's generations, in the right order."""

import os
from dataclasses import replace

import pytest

from tests import json_document
from tests.fakes.bar import (
    FEATURES,
    MEMORY,
    RUNS,
    pair,
    ring,
)
from tests.unit.guest.bench import Bench
from vhostpci_guest import __version__
from vhostpci_guest.dataplane.interface import RingRefused
from vhostpci_guest.serve.heartbeat import TICK
from vhostpci_guest.serve.link import FAST, SLOW
from vhostpci_shared import metadata as md
from vhostpci_shared.about import AboutFlag
from vhostpci_shared.access import Metadata
from vhostpci_shared.metadata import AgentFlag, AgentRingState, AgentState, RingFlag
from vhostpci_shared.position import Position
from vhostpci_shared.virtio import Feature


def test_rings_start_when_the_daemon_says_so(bench: Bench) -> None:
    generation = bench.publish(*pair(2))
    assert bench.running == {0, 1}
    assert bench.daemon.agent().generation == generation
    assert bench.daemon.agent().state is AgentState.READY
    assert bench.daemon.ring(0).state is AgentRingState.RUNNING
    assert bench.daemon.poked()


def test_data_plane_knows_the_name_of_its_device(bench: Bench) -> None:
    bench.publish(*pair(2))
    assert bench.plane.device == "net0"


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
    bench.publish(*pair(2, flags=0))
    bench.set_used(0, 9)
    bench.publish(ring(session=3, base=9), ring(1, session=2))
    assert (0, 9) in bench.plane.starts


def test_ring_whose_used_index_is_not_its_base_is_fenced_for_any_data_plane(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The fake data plane starts any ring: the agent itself has to see it."""
    bench.set_used(0, 9)
    bench.publish(ring(session=2, base=8), ring(1, session=2))
    assert bench.running == {1}
    assert bench.daemon.ring(0).state is AgentRingState.FENCED
    assert "to start at 8, and its used index is 9" in caplog.text


def test_ring_in_a_renewed_session_goes_on_though_it_moved_meanwhile(
    bench: Bench,
) -> None:
    bench.publish(*pair(2))
    bench.plane.move(0, 41)
    bench.daemon.publish(*pair(3, flags=RUNS | RingFlag.RESUME))
    bench.plane.move(0, 50)  # before the agent has seen the new session
    bench.look()
    assert bench.plane.starts[-2:] == [(0, 50), (1, 0)]
    assert bench.daemon.ring(0).state is AgentRingState.RUNNING


def test_packed_ring_starts_at_its_base_and_then_at_its_position(bench: Bench) -> None:
    packed = replace(ring(0, session=2, flags=RUNS | RingFlag.PACKED), base=0x8000)
    bench.publish(replace(packed, origin=2), ring(1, session=3))
    conf = bench.plane.running[0]
    assert (conf.packed, conf.base, conf.origin) == (True, 0x8000, 2)
    window = bench.device.window
    start = window.size - md.SIZE + md.POSITIONS
    assert conf.position_addr == window.address + start
    assert not bench.plane.running[1].packed
    # What the ring driver leaves, for an agent of another session.
    place = dict(
        zip(("desc", "driver", "device", "size"), place_of(packed), strict=True)
    )
    left = Position(origin=2, at=0x8009, next=0x8009, **place)
    window.view[start : start + 64] = bytes(left)
    bench.publish(replace(packed, session=4, origin=2), ring(1, session=3))
    assert bench.plane.starts[-1] == (0, 0x8009)
    bench.publish(replace(packed, session=5, origin=5), ring(1, session=3))
    assert bench.plane.starts[-1] == (0, 0x8000)
    for change in ({"desc": 0}, {"driver": 0}, {"device": 0}, {"size": 8}):
        other = replace(left, origin=5, **change)
        window.view[start : start + 64] = bytes(other)
        session = bench.plane.running[0].session + 1
        bench.publish(replace(packed, session=session, origin=5), ring(1, session=3))
        assert bench.plane.starts[-1] == (0, 0x8000)


def place_of(ring: md.Ring) -> tuple[int, ...]:
    return ring.desc, ring.driver, ring.device, ring.size


@pytest.mark.parametrize("calls", [True, False], ids=["calls", "no calls"])
def test_master_is_called_when_a_ring_starts_with_another_call(
    bench: Bench, calls: bool
) -> None:
    """A call that the worker made just before may have gone to the earlier one."""
    flags = RUNS if calls else RUNS & ~RingFlag.CALL
    bench.publish(*pair(2))
    bench.device.rung.clear()
    bench.publish(ring(session=2, flags=flags, call_peer=9), ring(1, session=2))
    assert ((9, 0) in bench.device.rung) == calls
    assert (md.FIRST_CALL_PEER, 1) not in bench.device.rung


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


def test_disabled_ring_does_not_run(bench: Bench) -> None:
    bench.publish(*pair(2, flags=RingFlag.STARTED))
    assert bench.running == set()


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


def test_data_plane_and_its_counters_outlast_a_silent_daemon(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.ticks(15, daemon=False)
    bench.look()
    assert len(bench.planes) == 1


def test_silent_daemon_is_logged_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.publish(*pair(2))
    bench.ticks(40, daemon=False)
    assert caplog.text.count("silent") == 1


def test_each_tick_raises_the_heartbeat_of_the_agent(bench: Bench) -> None:
    bench.publish(*pair(2))
    before = bench.daemon.agent().heartbeat
    bench.ticks(3)
    assert bench.daemon.agent().heartbeat == before + 3


def test_counters_of_a_ring_are_written_into_the_metadata(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.plane.move(0, 5, packets=1234)
    bench.ticks(1)
    assert bench.daemon.ring(0).packets == 1234
    assert bench.daemon.ring(0).index == 5


@pytest.mark.parametrize("state", [AgentRingState.BROKEN, AgentRingState.FENCED])
def test_broken_or_fenced_ring_waits_for_a_new_session(
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


def test_ring_that_stops_while_the_daemon_ends_its_session_is_not_reported(
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


def test_ring_that_is_refused_because_its_session_is_over_is_not_logged(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.publish()

    class Late(RingRefused):
        """A refusal during which the daemon publishes a new session."""

        def __init__(self) -> None:
            super().__init__("another session", AgentRingState.FENCED)
            bench.daemon.publish(*pair(3))

    bench.plane.refuse_once = Late
    bench.publish(*pair(2))
    bench.look()
    assert bench.running == {0, 1}
    assert "can't run" not in caplog.text


def test_ring_that_the_data_plane_refuses_is_reported_broken(bench: Bench) -> None:
    bench.publish()
    bench.plane.refuses[0] = RingRefused("size 3")
    bench.publish(*pair(2))
    assert bench.running == {1}
    assert bench.daemon.ring(0).state is AgentRingState.BROKEN


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


def kicked_by_peer(index: int, peer: int = md.FIRST_CALL_PEER) -> md.Ring:
    """A ring of session 2 whose kick is a vector of a peer."""
    plain = ring(index, session=2)
    return replace(plain, kick_peer=peer, kick_vector=2 + index)


def test_kick_of_a_peer_is_the_data_planes(bench: Bench) -> None:
    bench.device.eventfds = True
    bench.publish(kicked_by_peer(0), kicked_by_peer(1))
    confs = [bench.plane.running[index] for index in range(2)]
    kicks = [bench.device.made[(md.FIRST_CALL_PEER, 2 + index)] for index in range(2)]
    assert [conf.kick_fd for conf in confs] == kicks
    assert all(conf.owns_kick for conf in confs)


def test_ring_starts_again_with_the_kick_of_another_peer(bench: Bench) -> None:
    bench.device.eventfds = True
    bench.publish(kicked_by_peer(0), kicked_by_peer(1))
    bench.plane.move(1, 5)
    bench.publish(kicked_by_peer(0, 9), kicked_by_peer(1, 9))
    assert bench.plane.starts[-1] == (1, 5)
    assert bench.plane.running[1].kick_fd == bench.device.made[(9, 3)]


def test_ring_waits_for_the_peer_that_brings_its_kick(bench: Bench) -> None:
    bench.device.eventfds = True
    bench.device.absent = {9}
    bench.publish(kicked_by_peer(0), kicked_by_peer(1, 9))
    assert bench.running == {0}
    bench.device.absent = set()
    bench.look()
    assert bench.running == {0, 1}


def test_call_of_a_ring_that_waits_for_its_kick_is_closed(bench: Bench) -> None:
    """The leak check sees it."""
    bench.device.eventfds = True
    bench.device.absent = {9}
    bench.publish(kicked_by_peer(0), kicked_by_peer(1, 9))
    call = bench.device.made[(md.FIRST_CALL_PEER, 1)]
    assert bench.running == {0}
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(call)


def test_kick_of_a_peer_without_eventfds_breaks_the_ring(bench: Bench) -> None:
    """A slave VM has a doorbell register instead; no daemon says that."""
    bench.publish(ring(session=2), kicked_by_peer(1))
    assert bench.running == {0}
    assert bench.daemon.ring(1).state is AgentRingState.BROKEN


def test_ring_without_call_never_interrupts(bench: Bench) -> None:
    wanted = RUNS & ~RingFlag.CALL
    bench.publish(*pair(2, flags=wanted))
    assert [start.call for start in bench.plane.running.values()] == [None, None]


def test_ring_without_a_kick_is_polled(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.publish(ring(session=2, flags=RUNS | RingFlag.POLL), ring(1, session=2))
    kicks = [bench.plane.running[index].kick_fd for index in range(2)]
    assert kicks == [None, bench.device.vector(2)]


def test_ring_starts_with_its_vector_its_doorbell_and_its_entry(
    bench: Bench,
) -> None:
    bench.publish(*pair(2))
    conf = bench.plane.running[1]
    window = bench.device.window
    entry = window.size - md.SIZE + md.RINGS + md.Ring.layout.size
    assert conf.kick_fd == bench.device.vector(2)
    assert conf.call == bench.device.doorbell(md.FIRST_CALL_PEER, 1)
    assert conf.meta_addr == window.address + entry
    assert conf.session == 2
    assert conf.features == FEATURES


@pytest.mark.parametrize(
    ("features", "uso", "segment"),
    [
        (Feature.NET_F_HOST_USO, False, True),
        (Feature.NET_F_HOST_USO, True, False),
        (Feature.NET_F_GUEST_USO4, False, False),
    ],
)
def test_worker_segments_udp_that_the_master_sends_and_the_tap_does_not_know(
    bench: Bench, features: Feature, uso: bool, segment: bool
) -> None:
    bench.port.uso = uso
    bench.publish(*pair(2), features=features)
    assert bench.plane.running[1].segment_udp == segment
    assert bench.link is not None
    assert bench.link.status()["uso"] == uso
    said = AgentFlag.USO if uso else AgentFlag(0)
    assert bench.daemon.agent().flags & AgentFlag.USO == said


def test_more_queue_pairs_get_a_new_data_plane(bench: Bench) -> None:
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
def test_time_until_the_next_look_depends_on_interrupts_and_master(
    interrupts: bool, master: bool, interval: float
) -> None:
    bench = Bench(interrupts=interrupts)
    bench.daemon.publish()
    link = bench.attach()
    bench.publish(master=master)
    assert link.interval == interval
    bench.close()


def test_interrupt_of_the_metadata_vector_is_cleared(bench: Bench) -> None:
    bench.device.interrupt(md.METADATA_VECTOR)
    bench.look()
    assert not bench.device.interrupted(md.METADATA_VECTOR)


def test_end_of_the_link_stops_the_rings_and_tells_the_daemon() -> None:
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


def test_status_has_the_state_of_each_ring(bench: Bench) -> None:
    assert bench.link is not None
    bench.publish(*pair(2))
    bench.plane.move(0, 3, packets=4)
    status = bench.link.status()
    assert status["tap"] == "vp0"
    assert status["carrier"]
    assert status["rings"][0]["packets"] == 4
    assert status["rings"][0]["state"] == "running"
    assert status["rings"][0]["stats"]["packets"] == 4


def test_status_says_how_much_of_the_masters_memory_is_shared(bench: Bench) -> None:
    assert bench.link is not None
    bench.publish(*pair(2))
    assert bench.link.status()["confined"] is None
    bench.publish(*pair(2), confined=md.Confined(shared=80 << 20, memory=1 << 30))
    found = {"shared": 80 << 20, "memory": 1 << 30}
    assert bench.link.status()["confined"] == found
    bench.publish(*pair(2), confined=md.Confined(shared=80 << 20))
    assert bench.link.status()["confined"] == {**found, "memory": None}


def test_agent_tells_people_of_its_version_and_its_port(bench: Bench) -> None:
    assert bench.link is not None
    bench.publish(*pair(2))
    bench.link.tick()
    said = bench.daemon.metadata.about()
    assert said.instance == bench.daemon.agent().instance != 0
    assert (said.version, said.port) == (__version__, "vp0")
    assert said.flags == AboutFlag.INTERRUPTS


def test_suspended_device_runs_no_ring_and_reports_why(
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


def test_suspended_device_resumes_where_it_stopped(bench: Bench) -> None:
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
    bench.set_used(1, 77)
    bench.publish(*pair(2))
    assert (1, 77) in bench.plane.starts


def test_ring_is_as_full_as_its_driver_says_if_that_can_be(bench: Bench) -> None:
    assert bench.link is not None
    bench.publish(*pair(2))
    ring = bench.link.status()["rings"][0]
    assert ring["fill"] == 0
    at = 0x14000 + 2  # where `ring` of the fakes has it; the memory begins at 0
    bench.device.window.view[at : at + 2] = (5).to_bytes(2, "little")
    assert bench.link.status()["rings"][0]["fill"] == 5
    bench.device.window.view[at : at + 2] = (5000).to_bytes(2, "little")
    assert bench.link.status()["rings"][0]["fill"] is None


def test_document_has_each_key_of_the_status_and_no_other(bench: Bench) -> None:
    assert bench.link is not None
    bench.publish(*pair(2), confined=md.Confined(shared=1, memory=2))
    known = json_document.documented("vhostpci-guest status")
    found = set(json_document.keys(bench.link.status(), known))
    # The agent and the command add the first; the others are a real port's.
    more = {"pid", "version", "uid", "capabilities", "not_counted"}
    more |= {"data_plane_reason", "tap", "bridge", "carrier", "uso", "tap_dropped"}
    assert found | more == known
