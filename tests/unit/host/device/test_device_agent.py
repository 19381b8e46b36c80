# SPDX-License-Identifier: Apache-2.0
"""What the agent reports, how long the master waits for it, and its sessions."""

import logging
import os

import pytest

from tests.fakes.agent import FakeAgent
from tests.fakes.frontend import RingAt
from tests.unit.host.scene import Scene
from vhostpci_host.daemon.daemon import TICK
from vhostpci_host.device.agent_view import HANGS, HANGS_TICKS
from vhostpci_host.device.peer_log import BURST
from vhostpci_host.device.quiesce import QUIESCE
from vhostpci_host.device.status import describe, state
from vhostpci_shared import metadata as md
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.metadata import AgentRingState, RingFlag
from vhostpci_shared.vhost_user import Request

RX = RingAt.nth(0)


def test_base_is_answered_only_after_the_agent_has_stopped_the_ring(
    scene: Scene,
) -> None:
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        generation = agent.metadata.generation()
        scene.set_used(RX, 321)
        started = scene.loop.now
        assert qemu.stop_ring(0) == 321
        assert scene.loop.now - started < 0.01
        assert agent.entry.generation > generation
        assert not agent.snapshot().rings[0].runs
        assert agent.snapshot().rings[1].runs


@pytest.mark.parametrize("slave", [False, True], ids=["no slave", "no agent"])
def test_without_an_agent_the_master_never_waits(scene: Scene, slave: bool) -> None:
    """QEMU holds its big lock while it waits."""
    if slave:
        scene.slave()
    qemu = scene.running()
    started = scene.loop.now
    qemu.stop_ring(0)
    assert scene.loop.now == started


def test_agent_that_does_not_answer_delays_the_master_by_one_second_once(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        agent.answers = False
        before = scene.sessions()
        started = scene.loop.now
        assert [qemu.stop_ring(0), qemu.stop_ring(1)] == [0, 0]
        assert QUIESCE <= scene.loop.now - started < QUIESCE + 0.1
        assert all(new > old for new, old in zip(scene.sessions(), before, strict=True))
    assert "did not stop within" in caplog.text


def test_ring_keeps_its_session_until_the_agent_has_stopped_it(scene: Scene) -> None:
    """The agent may still report sent packets as used, in the present session only."""
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        agent.answers = False
        before = scene.sessions()[0]
        qemu.transport.send(vu.message(Request.GET_VRING_BASE, vu.VringState(0, 0)), ())
        assert not agent.snapshot().rings[0].runs
        assert scene.sessions()[0] == before
        agent.answer()
        scene.loop.advance()
        qemu.transport.receive()
        scene.start(qemu)
        assert scene.sessions()[0] != before


def test_device_waits_for_an_agent_from_its_first_answer_on(scene: Scene) -> None:
    """The agent runs rings from then on, perhaps before its first heartbeat."""
    slave = scene.slave()
    qemu = scene.running()
    with FakeAgent(scene.loop, slave, scene.device.store.file.fileno()) as agent:
        agent.beats = agent.answers = False
        agent.answer()
        qemu.transport.send(vu.message(Request.GET_VRING_BASE, vu.VringState(0, 0)), ())
        assert scene.device.backend is not None
        assert scene.device.backend.waiting
        agent.answer()
        qemu.transport.receive()


def test_first_agent_of_a_slave_keeps_the_present_sessions(scene: Scene) -> None:
    """It may be copying a packet at that moment; a new session would fence it."""
    slave = scene.slave()
    scene.running()
    before = scene.sessions()
    with scene.agent(slave):
        assert scene.sessions() == before


def test_first_agent_keeps_the_sessions_despite_a_dead_agents_entry(
    scene: Scene,
) -> None:
    stale = md.Agent(instance=9, heartbeat=77, state=md.AgentState.READY)
    scene.device.store.metadata.write_agent(stale)
    slave = scene.slave()
    scene.running()
    scene.loop.advance(1.0)
    before = scene.sessions()
    with scene.agent(slave):
        assert scene.sessions() == before


def test_next_agent_is_noticed_even_while_the_master_waits(
    scene: Scene,
) -> None:
    """The previous agent may still run, and must find that its sessions have ended."""
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        before = scene.sessions()[1]
        agent.say(instance=agent.entry.instance + 1)
        qemu.stop_ring(0)
        assert scene.sessions()[1] != before


def test_device_does_not_wait_for_an_agent_whose_heartbeat_stopped(
    scene: Scene,
) -> None:
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        agent.beats = agent.answers = False
        scene.loop.advance(3.0)
        started = scene.loop.now
        qemu.stop_ring(0)
        assert scene.loop.now == started


def test_agent_that_hangs_is_logged_once_and_shown(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with scene.agent(scene.slave()) as agent:
        scene.running()
        assert state(scene.device) == "running"
        agent.beats = agent.answers = False
        scene.loop.advance(1.0)
        assert state(scene.device) == "agent is silent"
        scene.loop.advance(5.0)
        assert state(scene.device) == "agent is silent"
        agent.beats = True
        scene.loop.advance(1.0)
        assert state(scene.device) == "running"
    assert caplog.text.count("the agent has said nothing for 0.7 s") == 1
    assert caplog.text.count("the agent is back") == 1


def test_agent_that_hangs_again_and_again_does_not_fill_the_log(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with scene.agent(scene.slave()) as agent:
        scene.running()
        for _ in range(20):
            agent.beats = not agent.beats
            scene.loop.advance(1.0)
    assert 0 < caplog.text.count("the agent has said nothing") <= BURST


def test_agent_is_not_taken_for_silent_because_the_daemon_stood_still(
    scene: Scene,
) -> None:
    """Its entry is old when we look again: both may have been paused."""
    with scene.agent(scene.slave()) as agent:
        scene.running()
        agent.beats = False
        view, now = scene.device.agent, scene.loop.now + 10.0
        assert view.only_beats(now)
        assert not view.hangs
        for tick in range(1, HANGS_TICKS):
            assert not view.hangs
            view.only_beats(now + TICK * tick)
        assert view.hangs


def test_agent_hangs_by_the_time_that_has_passed(scene: Scene) -> None:
    """Something other than a tick may have seen its last word, just before a tick."""
    with scene.agent(scene.slave()) as agent:
        scene.running()
        agent.beats = False
        view, now = scene.device.agent, scene.loop.now
        agent.say(heartbeat=1000)
        view.sample(now)
        for _ in range(HANGS_TICKS):
            view.only_beats(now + HANGS - 0.1)
        assert not view.hangs
        view.only_beats(now + HANGS)
        assert view.hangs


def test_agent_that_hangs_is_noticed_within_a_second(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with scene.agent(scene.slave()) as agent:
        scene.running()
        for phase in range(BURST):  # at different times of the slow tick
            agent.say(heartbeat=agent.entry.heartbeat + 1)
            agent.beats, stopped = False, scene.loop.now
            while "the agent has said nothing" not in caplog.text:
                scene.loop.advance(0.01)
            assert scene.loop.now - stopped <= 1.0
            agent.beats = True
            scene.loop.advance(1.0 + phase * 0.15)
            caplog.clear()


def test_agent_that_hangs_is_still_waited_for_and_keeps_its_sessions(
    scene: Scene,
) -> None:
    """It may only have no processor: it is fenced when the wait is over."""
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        before, started = scene.sessions(), scene.loop.now
        agent.beats = agent.answers = False
        scene.loop.advance(1.0)
        assert state(scene.device) == "agent is silent"
        assert scene.sessions() == before
        qemu.stop_ring(0)
        assert QUIESCE <= scene.loop.now - started - 1.0 < QUIESCE + 0.1


def test_slave_whose_last_agent_is_dead_is_shown_as_having_none(scene: Scene) -> None:
    stale = md.Agent(instance=9, heartbeat=77, state=md.AgentState.READY)
    scene.device.store.metadata.write_agent(stale)
    scene.slave()
    scene.running()
    scene.loop.advance(1.0)
    assert state(scene.device) == "no agent"


def test_device_does_not_wait_for_an_agent_that_failed(scene: Scene) -> None:
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        agent.answers = False
        agent.say(state=md.AgentState.FAILED, message="no TAP")
        scene.loop.advance()
        started = scene.loop.now
        qemu.stop_ring(0)
        assert scene.loop.now == started


def test_device_does_not_wait_for_an_agent_whose_heartbeat_it_never_saw(
    scene: Scene,
) -> None:
    """A reused arena may still call a dead agent READY: wait for a heartbeat first."""
    stale = md.Agent(instance=9, heartbeat=77, state=md.AgentState.READY)
    scene.device.store.metadata.write_agent(stale)
    scene.slave()
    qemu = scene.running()
    scene.loop.advance(1.0)
    started = scene.loop.now
    qemu.stop_ring(0)
    assert scene.loop.now == started


def test_wait_for_the_agent_ends_when_the_slave_disconnects(scene: Scene) -> None:
    slave = scene.slave()
    with scene.agent(slave) as agent:
        qemu = scene.running()
        agent.answers = False
        before = scene.sessions()[0]
        scene.loop.call_later(0.1, scene.device.slave_gone)
        started = scene.loop.now
        qemu.stop_ring(0)
        assert scene.loop.now - started < 0.2
        assert scene.sessions()[0] != before, (
            "the agent may still run, and must be fenced"
        )


def test_front_end_may_disconnect_while_it_waits_for_the_agent(scene: Scene) -> None:
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        agent.answers = False
        qemu.transport.send(vu.message(Request.GET_VRING_BASE, vu.VringState(0, 0)), ())
        assert scene.device.backend is not None
        assert scene.device.backend.waiting
        scene.device.master_gone()
        scene.loop.advance(2.0)
        assert agent.snapshot().device.flags == md.DeviceFlag.SLAVE


def test_next_agent_gets_new_sessions_without_a_base(scene: Scene) -> None:
    """It may run the ring by now: the daemon must not read where the ring stands."""
    with scene.agent(scene.slave()) as agent:
        scene.running()
        before = agent.snapshot().rings[0]
        assert not before.flags & RingFlag.RESUME
        scene.set_used(RX, 50)
        agent.say(instance=77)
        scene.loop.advance()
        after = agent.snapshot().rings[0]
        assert after.session > before.session
        assert after.flags == before.flags | RingFlag.RESUME
        assert after.base == 0


def test_next_agent_gets_the_base_and_the_origin_of_a_packed_ring(
    scene: Scene,
) -> None:
    """It starts at the base unless an agent has left a position with that origin."""
    with scene.agent(scene.slave()) as agent:
        qemu = scene.front_end(packed=True)
        qemu.driver_ok([RingAt.nth(0, base=0x8000_8000), RingAt.nth(1)])
        scene.settle()
        before = agent.snapshot().rings[0]
        assert before.flags & RingFlag.PACKED
        assert (before.base, before.origin) == (0x8000, before.session)
        agent.say(instance=77)
        scene.loop.advance()
        after = agent.snapshot().rings[0]
        assert after.session > before.session
        assert (after.base, after.origin) == (0x8000, before.origin)


def test_driver_that_starts_after_a_renewal_gives_the_base(scene: Scene) -> None:
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        agent.say(instance=77)
        scene.loop.advance()
        assert agent.snapshot().rings[0].flags & RingFlag.RESUME
        qemu.stop_ring(0)
        scene.start(qemu)
        assert not agent.snapshot().rings[0].flags & RingFlag.RESUME


def test_fenced_ring_is_renewed_at_most_once_a_second(scene: Scene) -> None:
    with scene.agent(scene.slave()) as agent:
        scene.running()
        scene.loop.advance(2.0)
        seen = {agent.snapshot().rings[0].session}
        for _ in range(90):
            agent.say_ring(0, AgentRingState.FENCED)
            scene.loop.advance(0.01)
            seen.add(agent.snapshot().rings[0].session)
        assert len(seen) == 2


def test_broken_ring_is_logged_once_and_signalled_to_qemu(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    err = os.eventfd(0, os.EFD_NONBLOCK)
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        qemu.send(Request.SET_VRING_ERR, vu.VringFd(0), err)
        for _ in range(3):
            agent.say_ring(0, AgentRingState.BROKEN)
            scene.loop.advance(1.0)
    assert caplog.text.count("broke ring 0") == 1
    assert os.eventfd_read(err) == 1
    os.close(err)


def test_message_of_a_failed_agent_is_logged_once(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with scene.agent(scene.slave()) as agent:
        agent.say(state=md.AgentState.FAILED, message="no /dev/net/tun")
        scene.loop.advance(3.0)
    assert caplog.text.count("agent failed: no /dev/net/tun") == 1


def test_agent_that_writes_after_its_slave_has_gone_is_not_told_of(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Its socket closes first, and it may answer a generation after that."""
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        scene.device.slave_gone()
        caplog.clear()
        with caplog.at_level(logging.INFO):
            agent.answer()
            scene.loop.advance(1.0)
            assert not describe(scene.device)["agent"]["present"]
            started = scene.loop.now
            qemu.stop_ring(0)
            assert scene.loop.now == started, "no agent serves the rings"
            agent.beats = agent.answers = False
            scene.loop.advance(5.0)
    assert [line for line in caplog.messages if "agent" in line] == []


def test_agent_that_has_ended_does_not_delay_the_line_about_the_next(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with scene.agent(scene.slave()) as agent:
        scene.loop.advance(5.0)
        agent.say(state=md.AgentState.NONE)
        scene.loop.advance(0.3)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            agent.say(state=md.AgentState.READY)
            scene.loop.advance(0.001)
            assert "agent is ready (fake)" in caplog.text


def test_agent_whose_message_keeps_changing_cannot_fill_the_log(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with scene.agent(scene.slave()) as agent:
        for number in range(1000):
            agent.say(state=md.AgentState.FAILED, message=str(number))
            scene.loop.advance(0.001)
    assert caplog.text.count("agent failed") <= 3


def test_too_few_vectors_are_logged_with_what_to_change(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with scene.agent(scene.slave()) as agent:
        agent.say(vectors=1)
        scene.loop.advance(2.0)
    assert "has 1 vectors and needs 3" in caplog.text
    assert "ivshmem-doorbell,vectors=3" in caplog.text
