# SPDX-License-Identifier: Apache-2.0
"""Which features a front-end is offered, and what happens if they were too many."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fakes.agent import FakeAgent
from tests.fakes.frontend import Dropped, FrontEnd
from tests.fakes.loop import ManualLoop
from tests.fakes.windows import MIB
from tests.unit.host.scene import Scene
from vhostpci_host.cli import print_status
from vhostpci_host.config.features import ALWAYS, PROFILES, parse_features
from vhostpci_host.device.offer import Offer
from vhostpci_host.device.status import describe
from vhostpci_host.features import OFFERED, PAIRS_ONLY
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.metadata import AgentFlag, AgentState
from vhostpci_shared.vhost_user import Request
from vhostpci_shared.virtio import Feature

DPDK = parse_features("dpdk")
PASST = parse_features("passt")
ALL = OFFERED & ~PAIRS_ONLY

Make = Callable[[Feature | None], Scene]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make a device with the option `features`."""
    with ExitStack() as undo:

        def new(features: Feature | None = None) -> Scene:
            found = Scene(tmp_path, ManualLoop(), memory=16 * MIB, features=features)
            return undo.enter_context(found)

        yield new


def offers(agent: FakeAgent, features: Feature, **more: object) -> None:
    agent.say(offers=int(features), flags=AgentFlag.OFFERS, **more)


def offered(scene: Scene) -> Feature:
    """Return what a front-end is offered that has not been here."""
    scene.loop.advance(0.1)
    return scene.front_end([], packed=True).features


def reconnect(scene: Scene, acknowledged: Feature) -> FrontEnd | None:
    """Connect as a QEMU whose driver has these features; None if it disconnects."""
    front_end = scene.front_end()
    if acknowledged & ~front_end.features:
        front_end.close()
        return None
    front_end.features = acknowledged
    scene.start(front_end)
    return front_end


# What is offered.


def test_device_that_knows_of_no_agent_offers_all(make: Make) -> None:
    assert offered(make(None)) == ALL


def test_option_bounds_the_offer_without_an_agent(make: Make) -> None:
    assert offered(make(DPDK)) == DPDK & ALL


@pytest.mark.parametrize("state", [AgentState.READY, AgentState.WAITING])
def test_agent_that_is_there_says_what_is_offered(
    make: Make, state: AgentState
) -> None:
    scene = make(None)
    offers(scene.agent(scene.slave()), PROFILES["passt"], state=state)
    assert offered(scene) == PASST


def test_option_bounds_what_the_agent_says(make: Make) -> None:
    scene = make(DPDK)
    offers(scene.agent(scene.slave()), OFFERED & ~Feature.F_IN_ORDER)
    assert offered(scene) == DPDK & ALL & ~Feature.F_IN_ORDER


def test_agent_that_does_not_know_yet_leaves_it_to_the_option(make: Make) -> None:
    scene = make(PASST)
    scene.agent(scene.slave()).say(state=AgentState.WAITING)
    assert offered(scene) == PASST


@pytest.mark.parametrize(
    ("option", "expected"), [(None, PASST), (DPDK, DPDK & ALL)], ids=["none", "dpdk"]
)
def test_agent_that_is_gone_counts_only_where_there_is_no_option(
    make: Make, option: Feature | None, expected: Feature
) -> None:
    """The option is what the user says of the next one."""
    scene = make(option)
    agent = scene.agent(scene.slave())
    offers(agent, PROFILES["passt"])
    scene.loop.advance(0.1)
    agent.close()
    scene.device.slave_gone()
    scene.loop.advance(10.0)
    assert offered(scene) == expected


def test_slave_cannot_take_away_what_a_modern_card_needs(make: Make) -> None:
    scene = make(None)
    offers(scene.agent(scene.slave()), Feature(0))
    assert offered(scene) == ALWAYS


def test_what_an_agent_has_left_in_the_metadata_counts_for_nothing(
    make: Make,
) -> None:
    """It may be from another run of the slave, with another data plane."""
    scene = make(None)
    agent = scene.agent(scene.slave())
    scene.device.slave_gone()
    offers(agent, PROFILES["passt"])
    scene.loop.advance(1.0)
    agent.close()
    scene.slave()
    scene.loop.advance(5.0)
    assert offered(scene) == ALL


def test_failed_agent_says_nothing_of_its_features(make: Make) -> None:
    scene = make(None)
    offers(scene.agent(scene.slave()), PROFILES["passt"], state=AgentState.FAILED)
    assert offered(scene) == ALL


def test_all_queue_pairs_of_a_front_end_are_told_the_same(make: Make) -> None:
    """QEMU asks for each, and gives the card what the first was told."""
    scene = make(None)
    front_end = scene.front_end([], packed=True)
    offers(scene.agent(scene.slave()), PROFILES["passt"])
    scene.loop.advance(0.1)
    again = Feature(vu.U64.parse(front_end.ask(Request.GET_FEATURES)).value)
    assert again == ALL
    front_end.close()
    assert offered(scene) == PASST


def test_status_has_what_is_withheld(make: Make) -> None:
    scene = make(None)
    assert "withheld" not in print_status.text(describe(scene.device))
    offers(scene.agent(scene.slave()), ALL & ~Feature.NET_F_CSUM)
    scene.loop.advance(0.1)
    status = describe(scene.device)
    assert "  withheld NET_F_CSUM\n" in print_status.text(status)
    assert status["features"]["option"] is None
    assert "NET_F_CSUM" not in status["agent"]["offers"]
    del status["features"]  # of an earlier daemon
    assert "withheld" not in print_status.text(status)


# Front-ends that come back.


def test_front_end_that_needs_more_is_offered_all_the_next_time(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Or it would connect again and again for as long as it lives."""
    caplog.set_level("INFO")
    scene = make(None)
    agent = scene.agent(scene.slave())
    front_end = reconnect(scene, ALL & ~Feature.F_RING_PACKED)
    assert front_end is not None
    offers(agent, PROFILES["dpdk"])
    scene.loop.advance(0.1)
    for _ in range(3):
        front_end.close()
        scene.loop.advance(1.0)
        front_end = reconnect(scene, ALL & ~Feature.F_RING_PACKED)
        if front_end is None:
            scene.loop.advance(1.0)
            front_end = reconnect(scene, ALL & ~Feature.F_RING_PACKED)
        assert front_end is not None, "it is refused again and again"
    assert caplog.text.count("left without features: it is offered all") == 1


def test_front_end_that_needs_no_more_is_offered_what_is_served(make: Make) -> None:
    scene = make(None)
    offers(scene.agent(scene.slave()), PROFILES["dpdk"])
    for _ in range(3):
        scene.loop.advance(1.0)
        front_end = scene.front_end()
        assert front_end.features == DPDK & ALL & ~Feature.F_RING_PACKED
        scene.start(front_end)
        front_end.close()


def test_process_is_forgotten_when_another_has_its_place(make: Make) -> None:
    agent = make(None).device.agent
    offer = Offer(PASST, agent)
    assert (offer.to(5), offer.left(5, acknowledged=False)) == (PASST, True)
    assert offer.to(6) == PASST
    offer.left(6, acknowledged=True)
    assert offer.to(5) == PASST


def test_driver_of_a_card_that_was_made_before_may_have_more(make: Make) -> None:
    """QEMU gives its driver what it was offered when it made the card."""
    scene = make(PASST)
    front_end = scene.front_end()
    front_end.features |= Feature.NET_F_CSUM
    scene.start(front_end)
    assert scene.device.rings_run
    with pytest.raises(Dropped, match=r"not offered: .*NET_F_RSS"):
        front_end.send(
            Request.SET_FEATURES, vu.U64(front_end.features | Feature.NET_F_RSS)
        )
