# SPDX-License-Identifier: Apache-2.0
"""A daemon is killed while the master's card has no carrier, or just loses it."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fakes.agent import FakeAgent
from tests.fakes.frontend import Dropped, FrontEnd
from tests.unit.host.daemon import test_succession
from tests.unit.host.daemon.test_succession import Host, Steps, ToHost, started
from vhostpci_host.config.device import Mode
from vhostpci_host.daemon import carrier
from vhostpci_host.features import OFFERED
from vhostpci_shared.metadata import AgentFlag, AgentState
from vhostpci_shared.vhost_user import Request
from vhostpci_shared.virtio import Feature

steps = test_succession.steps
PERIOD = 3.5
"""Seconds after which the carrier is off."""


@pytest.fixture(autouse=True)
def _returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The front-end's command line says that it comes back."""
    monkeypatch.setattr(carrier, "says_reconnect", lambda *_: True)


@pytest.fixture(params=[Mode.ARENA, Mode.ATTACH])
def mode(request: pytest.FixtureRequest) -> Mode:
    found: Mode = request.param
    return found


def start_agent(host: Host, undo: ExitStack) -> FakeAgent:
    device = host.server.device
    agent = FakeAgent(host.loop, host.qemu, device.store.file.fileno())
    undo.callback(agent.close)
    agent.say(instance=1, generation=agent.metadata.generation())
    host.pass_time(0.5)
    return agent


def assert_comes_back(host: Host, undo: ExitStack) -> None:
    """Check that there is a carrier, and negotiation, once there is an agent."""
    assert host.server.carrier.off
    assert not host.config.vhost_user.exists()
    start_agent(host, undo)
    assert not host.server.carrier.off
    front_end = FrontEnd(ToHost(host), host.regions())
    undo.enter_context(front_end)
    front_end.connect()
    host.pass_time(1.0)
    front_end.ask(Request.GET_FEATURES)


def test_successor_leaves_the_carrier_off(
    tmp_path: Path, steps: Steps, mode: Mode
) -> None:
    with ExitStack() as undo:
        host = Host(tmp_path, steps, mode)
        undo.callback(host.close)
        started(host, undo)
        host.pass_time(PERIOD)
        assert host.server.carrier.off
        for _ in range(2):
            host.kill()
            host.pass_time(PERIOD)
        assert_comes_back(host, undo)


def test_successor_knows_what_the_front_end_needs(
    tmp_path: Path, steps: Steps, mode: Mode
) -> None:
    """And what the agent serves, which has said nothing since."""
    with ExitStack() as undo:
        host = Host(tmp_path, steps, mode)
        undo.callback(host.close)
        started(host, undo)
        agent = start_agent(host, undo)
        lacks = int(OFFERED & ~Feature.NET_F_CSUM)
        agent.say(state=AgentState.MISMATCH, flags=AgentFlag.OFFERS, offers=lacks)
        host.pass_time(PERIOD)
        assert host.server.carrier.off
        for _ in range(2):
            host.kill()
            host.pass_time(PERIOD)
        # An agent that does not say yet what it serves serves what the last one did.
        agent = start_agent(host, undo)
        assert host.server.carrier.describe()["lacking"] == ["NET_F_CSUM"]
        assert Feature.NET_F_CSUM not in host.server.device.offer.limit
        agent.say(flags=AgentFlag.OFFERS, offers=int(OFFERED))
        host.pass_time(0.5)
        assert not host.server.carrier.off


def take_off(directory: Path, steps: Steps, kill_at: int, mode: Mode) -> int:
    """Have the carrier go off, with the daemon killed at one step of that.

    Returns:
        How many steps there were.
    """
    with ExitStack() as undo:
        host = Host(directory, steps, mode)
        undo.callback(host.close)
        front_end = started(host, undo)
        host.pass_time(2.5)
        steps.count, steps.kill_at = 0, kill_at
        host.pass_time(1.0)
        count = steps.count
        assert host.kills == int(kill_at > 0)
        # A successor that finds the front-end connected gives it the whole period.
        host.pass_time(PERIOD)
        with pytest.raises(Dropped):
            front_end.ask(Request.GET_FEATURES)
        assert_comes_back(host, undo)
        return count


def test_carrier_goes_off_wherever_the_daemon_is_killed(
    tmp_path: Path, steps: Steps, mode: Mode
) -> None:
    last = take_off(tmp_path, steps, 0, mode)
    assert last > 10
    for step in range(1, last + 1):
        take_off(tmp_path, steps, step, mode)


def test_successor_is_open_for_the_next_master(
    tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that was to come back has ended meanwhile."""

    def has_ended(*_: object) -> None:
        raise ProcessLookupError

    with ExitStack() as undo:
        host = Host(tmp_path, steps)
        undo.callback(host.close)
        started(host, undo)
        host.pass_time(PERIOD)
        monkeypatch.setattr(carrier, "WatchedProcess", has_ended)
        host.kill()
        assert not host.server.carrier.off
        undo.enter_context(FrontEnd(ToHost(host), host.regions())).connect()
