# SPDX-License-Identifier: Apache-2.0
"""An agent that follows the daemon and runs no ring: it waits, or cannot serve."""

import pytest

from tests.unit.host.scene import Scene
from vhostpci_host.cli import print_status
from vhostpci_host.daemon.daemon import TICK
from vhostpci_host.device.peer_log import BURST
from vhostpci_host.device.status import describe, state
from vhostpci_host.features import OFFERED
from vhostpci_shared.metadata import AgentFlag, AgentState
from vhostpci_shared.virtio import Feature

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


def test_mismatch_is_told_with_what_lacks_and_what_to_do(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with scene.agent(scene.slave()) as agent:
        scene.running()
        scene.settle()
        lacks = Feature.NET_F_CSUM | Feature.F_EVENT_IDX
        agent.say(
            state=AgentState.MISMATCH,
            data_plane="vhost-user",
            flags=AgentFlag.OFFERS,
            # The MTU is the daemon's, and no data plane's.
            offers=int(OFFERED & ~lacks & ~Feature.NET_F_MTU),
        )
        scene.loop.advance(5.0)
        text = "the data plane vhost-user lacks NET_F_CSUM, F_EVENT_IDX, which the"
        assert caplog.text.count(text) == 1
        assert "broke" not in caplog.text
        status = describe(scene.device)
        assert f"  problem  {text} master's driver" in print_status.text(status)
        assert "option `features`" in status["features"]["mismatch"]
        agent.say(state=AgentState.READY)
        scene.loop.advance(2.0)
        assert describe(scene.device)["features"]["mismatch"] is None
        # It is told again when it happens again.
        agent.say(state=AgentState.MISMATCH)
        scene.loop.advance(2.0)
        assert caplog.text.count(text) == 2


def test_mismatch_of_an_agent_that_says_no_more_has_its_words(scene: Scene) -> None:
    with scene.agent(scene.slave()) as agent:
        scene.running()
        agent.say(state=AgentState.MISMATCH, message="it lacks NET_F_CSUM")
        scene.loop.advance(0.1)
        text = "the data plane of the agent lacks it lacks NET_F_CSUM"
        assert text not in scene.device.mismatch
        assert "it lacks NET_F_CSUM" in scene.device.mismatch


def test_slave_whose_mismatch_keeps_changing_cannot_fill_the_log(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    with scene.agent(scene.slave()) as agent:
        scene.running()
        for number in range(100):
            agent.say(state=AgentState.MISMATCH, message=str(number))
            scene.loop.advance(1.0)
    assert 0 < caplog.text.count("lacks what the master's driver") <= 2 * BURST + 2
