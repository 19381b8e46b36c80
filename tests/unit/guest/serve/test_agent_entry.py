# SPDX-License-Identifier: Apache-2.0
"""What the agent says of itself: its state, and the features of its data plane."""

from collections.abc import Iterator

import pytest

from tests.fakes.bar import FakeDevice
from vhostpci_guest.serve.agent_entry import AgentEntry
from vhostpci_shared import metadata as md
from vhostpci_shared.access import Metadata, find
from vhostpci_shared.metadata import AgentFlag, AgentState
from vhostpci_shared.virtio import Feature


class Said:
    """An agent's entry, and what the daemon reads of it."""

    def __init__(self, metadata: Metadata, device: FakeDevice) -> None:
        self._metadata = metadata
        self.entry = AgentEntry(metadata, device)

    def read(self) -> md.Agent:
        self.entry.write()
        return md.Agent.parse(self._metadata.agent_bytes())


@pytest.fixture
def said() -> Iterator[Said]:
    device = FakeDevice()
    metadata = Metadata(find(device.window.view))
    yield Said(metadata, device)
    metadata.release()
    device.close()


def test_agent_without_a_back_end_says_what_it_waits_for(said: Said) -> None:
    said.entry.set_waiting("no back-end at /run/one.sock")
    agent = said.read()
    assert agent.state is AgentState.WAITING
    assert agent.message == "no back-end at /run/one.sock"


def test_agent_that_is_ready_again_has_nothing_to_complain_about(said: Said) -> None:
    said.entry.set_mismatch("NET_F_CSUM lacks")
    assert said.read().state is AgentState.MISMATCH
    said.entry.set_ready()
    assert (said.read().state, said.read().message) == (AgentState.READY, "")


@pytest.mark.parametrize("state", ["waiting", "mismatch", "failed"])
def test_only_a_failure_stays_when_the_agent_ends(said: Said, state: str) -> None:
    getattr(said.entry, f"set_{state}")("for a reason")
    said.entry.set_left()
    failed = state == "failed"
    assert said.read().state is (AgentState.FAILED if failed else AgentState.NONE)
    assert said.read().message == ("for a reason" if failed else "")


def test_features_of_the_data_plane_are_valid_only_once_they_are_known(
    said: Said,
) -> None:
    said.entry.set_plane("vhost-user", None)
    agent = said.read()
    assert (agent.data_plane, agent.flags) == ("vhost-user", AgentFlag(0))
    said.entry.set_plane("vhost-user", int(Feature.F_VERSION_1))
    agent = said.read()
    assert (agent.offers, agent.flags) == (Feature.F_VERSION_1, AgentFlag.OFFERS)


def test_news_of_the_tap_leaves_those_of_the_data_plane_as_they_are(
    said: Said,
) -> None:
    said.entry.set_plane("ring", 0)
    said.entry.set_flag(AgentFlag.USO, on=True)
    assert said.read().flags == AgentFlag.OFFERS | AgentFlag.USO
    said.entry.set_flag(AgentFlag.USO, on=False)
    assert said.read().flags == AgentFlag.OFFERS
