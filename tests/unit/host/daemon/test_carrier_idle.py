# SPDX-License-Identifier: Apache-2.0
"""The carrier of a master whose agent is there and runs no ring."""

import subprocess
from dataclasses import replace

import pytest

from tests.unit.host.daemon import test_carrier
from tests.unit.host.daemon.served import Served
from tests.unit.host.daemon.test_carrier import (
    GRACE,
    LATE,
    Process,
    front_end,
    has_carrier,
    is_open,
    load,
)
from vhostpci_host.cli import print_status
from vhostpci_host.device.status import describe, state
from vhostpci_host.features import OFFERED
from vhostpci_shared.metadata import AgentFlag, AgentState
from vhostpci_shared.virtio import Feature

returns, serve, served = (
    test_carrier.returns,
    test_carrier.serve,
    test_carrier.served,
)
process = test_carrier.process
WHY = "no back-end at /run/one.sock"


def say(agent: Process, state: AgentState, message: str = "") -> None:
    agent.entry = replace(agent.entry, state=state, message=message)


def mismatch(agent: Process, lacks: Feature) -> None:
    """Say that the data plane lacks a feature that the driver has."""
    agent.entry = replace(
        agent.entry,
        state=AgentState.MISMATCH,
        flags=AgentFlag.OFFERS,
        offers=int(OFFERED & ~lacks),
        data_plane="vhost-user",
    )


def serve_all(agent: Process) -> None:
    """Be an agent with a data plane that lacks nothing."""
    agent.entry = replace(
        agent.entry, state=AgentState.READY, offers=int(OFFERED), data_plane="ring"
    )


def shown(served: Served) -> str:
    why = served.server.carrier.why_off
    return state(served.server.device, why_off=why)


def test_agent_that_waits_takes_the_carrier_off(served: Served) -> None:
    agent = Process(served)
    with front_end(served) as qemu:
        load(served, qemu)
        say(agent, AgentState.WAITING, WHY)
        served.loop.advance(GRACE - LATE)
        assert has_carrier(qemu)
        served.loop.advance(2 * LATE)
        assert not has_carrier(qemu)
    assert served.said(f"dropped: its agent has served no ring for 3 s ({WHY})") == 1
    assert shown(served) == "agent is waiting: the master has no carrier"
    served.loop.advance(1000.0)
    assert not is_open(served)
    say(agent, AgentState.READY)
    served.loop.advance(LATE)
    with front_end(served) as qemu:
        load(served, qemu)
        served.loop.advance(100.0)
        assert has_carrier(qemu)


def test_back_end_that_is_back_in_time_is_not_missed(served: Served) -> None:
    agent = Process(served)
    with front_end(served) as qemu:
        load(served, qemu)
        for _ in range(3):
            say(agent, AgentState.WAITING, WHY)
            served.loop.advance(GRACE - LATE)
            say(agent, AgentState.READY)
            served.loop.advance(10.0)
        assert has_carrier(qemu)


def test_master_that_keeps_its_carrier_is_told_of_with_the_reason(
    served: Served, returns: list[bool]
) -> None:
    returns.append(False)
    with front_end(served) as qemu:
        load(served, qemu)
        Process(served, AgentState.WAITING)
        served.loop.advance(GRACE + LATE)
        assert has_carrier(qemu)
    text = "keeps its carrier although the agent is waiting: nothing shows"
    assert served.said(text) == 1


@pytest.mark.parametrize("state", [AgentState.READY, AgentState.WAITING])
def test_agent_that_dies_is_a_missing_one_whatever_it_said(
    served: Served, state: AgentState
) -> None:
    agent = Process(served, state)
    with front_end(served) as qemu:
        load(served, qemu)
        agent.end()
        served.loop.advance(GRACE + LATE)
        assert not has_carrier(qemu)
    assert shown(served) == "no agent: the master has no carrier"
    assert served.said("dropped: there has been no agent for 3 s") == 1


def test_carrier_stays_off_until_the_agent_serves_what_the_driver_has(
    served: Served,
) -> None:
    """Its front-end would come back with the same features, again and again."""
    agent = Process(served)
    with front_end(served) as qemu:
        load(served, qemu)
        mismatch(agent, Feature.NET_F_CSUM)
        served.loop.advance(GRACE + LATE)
        assert not has_carrier(qemu)
    assert served.said("dropped: the data plane vhost-user lacks NET_F_CSUM") == 1
    # Without a front-end the agent finds no fault, and is ready.
    say(agent, AgentState.READY)
    served.loop.advance(1000.0)
    assert not is_open(served)
    assert shown(served) == "features do not match: the master has no carrier"
    status = describe(served.server.device, carrier=served.server.carrier.describe())
    text = "carrier  off until an agent serves NET_F_CSUM"
    assert text in print_status.text(status)
    serve_all(agent)
    served.loop.advance(LATE)
    with front_end(served) as qemu:
        load(served, qemu)
        served.loop.advance(100.0)
        assert has_carrier(qemu)


def test_another_process_is_welcome_although_features_lacked(
    served: Served, process: subprocess.Popen[bytes]
) -> None:
    """It negotiates what is served now."""
    agent = Process(served)
    with front_end(served) as qemu:
        load(served, qemu)
        mismatch(agent, Feature.NET_F_CSUM)
        served.loop.advance(GRACE + LATE)
        assert not has_carrier(qemu)
    say(agent, AgentState.READY)
    served.loop.advance(LATE)
    process.kill()
    process.wait()
    served.loop.advance(LATE)
    with front_end(served) as qemu:
        assert Feature.NET_F_CSUM not in qemu.features
        load(served, qemu)
        served.loop.advance(100.0)
        assert has_carrier(qemu)
