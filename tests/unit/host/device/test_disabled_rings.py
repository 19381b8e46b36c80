# SPDX-License-Identifier: Apache-2.0
"""Rings that the front-end disables: it never waits, and the agent stops all at once.

QEMU disables one ring after the other when its guest uses fewer queue pairs.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.agent import FakeAgent
from tests.fakes.frontend import FrontEnd, RingAt
from tests.fakes.loop import ManualLoop
from tests.fakes.windows import MIB
from tests.unit.host.scene import Scene
from vhostpci_host.device.quiesce import QUIESCE
from vhostpci_host.device.ring_lease import RingState
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.metadata import AgentState
from vhostpci_shared.vhost_user import Request

PAIRS = 4
ALL = frozenset(range(2 * PAIRS))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A device with several queue pairs."""
    with Scene(tmp_path, ManualLoop(), memory=16 * MIB, queue_pairs=PAIRS) as scene:
        yield scene


@pytest.fixture
def agent(scene: Scene) -> Iterator[FakeAgent]:
    """An agent of that device."""
    with scene.agent(scene.slave()) as agent:
        yield agent


@pytest.fixture
def qemu(scene: Scene, agent: FakeAgent) -> FrontEnd:
    """A front-end of that device; all of its rings run."""
    front_end = scene.running()
    assert running(agent) == ALL
    return front_end


def running(agent: FakeAgent) -> frozenset[int]:
    """Return the rings that the metadata asks the agent to run."""
    rings = agent.snapshot().rings
    return frozenset(index for index, ring in enumerate(rings) if ring.runs)


def use(front_end: FrontEnd, pairs: int) -> None:
    """Enable the rings of so many pairs, and disable the others, as QEMU does."""
    for index in sorted(ALL):
        state = vu.VringState(index, index < 2 * pairs)
        front_end.send(Request.SET_VRING_ENABLE, state)


def states(scene: Scene) -> set[RingState]:
    """Return the states of the leases of the first pair."""
    return {lease.state for lease in scene.device.leases[:2]}


def test_front_end_that_disables_rings_never_waits(
    scene: Scene, qemu: FrontEnd, agent: FakeAgent
) -> None:
    agent.answers = False
    started = scene.loop.now
    use(qemu, 1)
    assert scene.loop.now == started


def test_agent_stops_all_disabled_rings_in_one_generation(
    scene: Scene, qemu: FrontEnd, agent: FakeAgent
) -> None:
    agent.answers = False
    asked = len(agent.asked)
    use(qemu, 1)
    scene.settle()
    assert running(agent) == {0, 1}
    assert len(agent.asked) == asked + 1


def test_next_request_waits_until_the_agent_has_stopped_the_disabled_rings(
    scene: Scene, qemu: FrontEnd, agent: FakeAgent
) -> None:
    """User Mode Linux frees the memory of its rings after it."""
    agent.answers = False
    use(qemu, 0)
    scene.settle()
    qemu.transport.send(vu.message(Request.GET_FEATURES), ())
    assert scene.device.backend is not None
    assert scene.device.backend.waiting
    agent.answer()
    scene.loop.advance(0.01)
    assert not scene.device.backend.waiting
    qemu.transport.receive()


def test_next_request_takes_rings_that_were_disabled_just_before_it(
    scene: Scene, qemu: FrontEnd, agent: FakeAgent
) -> None:
    """It comes before the device settles."""
    use(qemu, 0)
    qemu.ask(Request.GET_FEATURES)
    assert not running(agent)
    assert states(scene) == {RingState.STOPPED}


def test_disabled_ring_goes_on_where_the_agent_stopped_it(
    scene: Scene, qemu: FrontEnd, agent: FakeAgent
) -> None:
    agent.answers = False
    use(qemu, 0)
    scene.settle()
    scene.set_used(RingAt.nth(1), 77)  # the agent returns what it has in hand
    agent.answers = True
    agent.answer()
    scene.settle()
    use(qemu, PAIRS)
    scene.settle()
    assert [ring.base for ring in agent.snapshot().rings[:2]] == [0, 77]


def test_rings_enabled_before_the_agent_has_stopped_them_run_again_afterwards(
    scene: Scene, qemu: FrontEnd, agent: FakeAgent
) -> None:
    agent.answers = False
    before = scene.sessions()
    use(qemu, 0)
    scene.settle()
    use(qemu, PAIRS)
    scene.settle()
    assert not running(agent)
    assert scene.sessions() == before
    agent.answers = True
    agent.answer()
    scene.settle()
    assert running(agent) == ALL
    assert all(now > then for now, then in zip(scene.sessions(), before, strict=True))


def test_rings_disabled_while_the_agent_stops_others_are_stopped_afterwards(
    scene: Scene, qemu: FrontEnd, agent: FakeAgent
) -> None:
    agent.answers = False
    use(qemu, 2)
    scene.settle()
    use(qemu, 1)
    scene.settle()
    assert running(agent) == {0, 1, 2, 3}
    agent.answers = True
    agent.answer()
    scene.settle()
    assert running(agent) == {0, 1}


def test_agent_that_does_not_stop_disabled_rings_is_fenced(
    scene: Scene,
    qemu: FrontEnd,
    agent: FakeAgent,
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent.answers = False
    before = scene.sessions()[:2]
    use(qemu, 0)
    scene.settle()
    assert scene.sessions()[:2] == before
    scene.loop.advance(QUIESCE)
    now = scene.sessions()[:2]
    assert all(new > old for new, old in zip(now, before, strict=True))
    assert "did not stop within" in caplog.text


def test_ring_that_runs_again_is_not_stopped_by_the_wait_for_its_last_stop(
    scene: Scene, qemu: FrontEnd, agent: FakeAgent
) -> None:
    """The agent fails, so that the next request stops the rings without a wait."""
    agent.answers = False
    use(qemu, 0)
    scene.settle()
    agent.say(state=AgentState.FAILED, generation=0)
    qemu.ask(Request.GET_FEATURES)
    use(qemu, PAIRS)
    scene.settle()
    sessions = scene.sessions()
    scene.loop.advance(QUIESCE)
    assert running(agent) == ALL
    assert scene.sessions() == sessions


def test_slave_may_leave_while_it_stops_disabled_rings(
    scene: Scene, qemu: FrontEnd, agent: FakeAgent
) -> None:
    agent.answers = False
    before = scene.sessions()[:2]
    use(qemu, 0)
    scene.settle()
    scene.device.slave_gone()
    assert states(scene) == {RingState.STOPPED}
    now = scene.sessions()[:2]
    assert all(new > old for new, old in zip(now, before, strict=True))


def test_front_end_may_leave_while_the_agent_stops_disabled_rings(
    scene: Scene,
    qemu: FrontEnd,
    agent: FakeAgent,
    caplog: pytest.LogCaptureFixture,
) -> None:
    agent.answers = False
    use(qemu, 0)
    scene.settle()
    qemu.close()
    assert states(scene) == {RingState.STOPPED}
    scene.loop.advance(2 * QUIESCE)
    assert "did not stop within" not in caplog.text
    agent.answers = True
    agent.answer()
    scene.running()
    assert running(agent) == ALL
