# SPDX-License-Identifier: Apache-2.0
"""An agent that follows the daemon and runs no ring: it waits, or cannot serve."""

import pytest

from tests.unit.host.scene import Scene
from vhostpci_host.cli import print_status
from vhostpci_host.daemon.daemon import TICK
from vhostpci_host.device.status import describe, state
from vhostpci_shared.metadata import AgentState

WHY = "no back-end at /run/one.sock"
IDLE = [
    (AgentState.WAITING, "agent is waiting"),
    (AgentState.MISMATCH, "features do not match"),
]
idle = pytest.mark.parametrize(("said", "shown"), IDLE)


@idle
def test_status_has_the_state_of_its_own_and_what_the_agent_says(
    scene: Scene, said: AgentState, shown: str
) -> None:
    with scene.agent(scene.slave()) as agent:
        scene.running()
        scene.settle()
        agent.say(state=said, message=WHY, data_plane="vhost-user")
        scene.loop.advance(0.01)
        assert state(scene.device) == shown
        line = f"  agent    {said.name.lower()} fake vhost-user {WHY}\n"
        assert line in print_status.text(describe(scene.device))
        agent.say(state=AgentState.READY, message="")
        scene.loop.advance(0.01)
        assert state(scene.device) == "running"


@idle
def test_master_does_not_wait_for_rings_that_the_agent_does_not_run(
    scene: Scene, said: AgentState, shown: str
) -> None:
    """QEMU holds its big lock while it waits."""
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        agent.say(state=said, message=WHY)
        agent.answers = False
        scene.loop.advance(1.0)
        started = scene.loop.now
        qemu.stop_ring(0)
        assert (scene.loop.now, state(scene.device)) == (started, shown)


def test_agent_that_becomes_ready_just_then_is_waited_for(scene: Scene) -> None:
    """It may have looked before the daemon published, and start the ring."""
    with scene.agent(scene.slave()) as agent:
        qemu = scene.running()
        agent.say(state=AgentState.WAITING, message=WHY)
        scene.loop.advance(0.1)
        publish = scene.device.publisher.publish

        def published(*args: object, **options: object) -> bool:
            scene.device.publisher.publish = publish  # type: ignore[method-assign]
            agent.entry = agent.entry.__class__(
                instance=1, state=AgentState.READY, generation=agent.entry.generation
            )
            agent.metadata.write_agent(agent.entry)
            return publish(*args, **options)  # type: ignore[arg-type]

        scene.device.publisher.publish = published  # type: ignore[method-assign]
        before = agent.entry.generation
        qemu.stop_ring(0)
        assert agent.entry.generation > before, "the answer came first"


@idle
def test_rings_run_on_when_the_agent_is_ready_again(
    scene: Scene, said: AgentState, shown: str
) -> None:
    with scene.agent(scene.slave()) as agent:
        scene.running()
        scene.settle()
        sessions = scene.sessions()
        agent.say(state=said, message=WHY)
        scene.loop.advance(1.0)
        agent.say(state=AgentState.READY, message="")
        scene.loop.advance(1.0)
        assert scene.sessions() == sessions
        assert all(ring.runs for ring in agent.snapshot().rings), shown


@idle
def test_agent_that_dies_while_it_runs_no_ring_is_silent(
    scene: Scene, said: AgentState, shown: str
) -> None:
    with scene.agent(scene.slave()) as agent:
        scene.running()
        scene.settle()
        agent.say(state=said, message=WHY)
        scene.loop.advance(10.0)
        assert state(scene.device) == shown
        agent.beats = agent.answers = False
        scene.loop.advance(2.0)
        assert state(scene.device) == "agent is silent"
        agent.say(heartbeat=agent.entry.heartbeat + 1)
        scene.loop.advance(TICK)
        assert state(scene.device) == shown


def test_waiting_is_logged_once_with_its_reason(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with scene.agent(scene.slave()) as agent:
        agent.say(state=AgentState.WAITING, message=WHY)
        scene.loop.advance(5.0)
    assert caplog.text.count(f"the agent is waiting: {WHY}") == 1
