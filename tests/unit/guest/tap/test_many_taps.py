# SPDX-License-Identifier: Apache-2.0
"""One agent makes real TAPs for several devices by the user's rules."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.fakes.bar import FakeDaemon, FakeDevice, pair
from tests.fakes.netns import ip
from tests.fakes.plane import NO_PACKETS
from tests.fakes.source import FakeSource, beat_and_step
from tests.waiting import eventually
from vhostpci_guest import agent
from vhostpci_guest.agent import Agent
from vhostpci_guest.tap.naming import Rules, parse_tap
from vhostpci_guest.tap.tap_port import Ports
from vhostpci_shared.metadata import AgentState

pytestmark = pytest.mark.usefixtures("network")


class Slave:
    """An agent whose devices the test plugs and unplugs."""

    def __init__(self, tap: str | None = None, bridge: str | None = None) -> None:
        rules = Rules(tap=None if tap is None else parse_tap(tap), bridge=bridge)
        ports = Ports(rules, **NO_PACKETS)
        self._stack = ExitStack()
        self._source = FakeSource(single=False)
        self._agent = Agent(self._source, ports.make)
        self._stack.callback(self._agent.close)
        self._there: dict[str, tuple[FakeDevice, FakeDaemon]] = {}

    def plug(self, slot: str, name: str) -> FakeDaemon:
        """Plug a device in; return its daemon, which has published running rings."""
        device = FakeDevice(name=slot)
        daemon = FakeDaemon(device)
        self._there[slot] = (device, daemon)
        self._source.there.append(device)
        daemon.publish(*pair(2), name=name)
        self.step()
        self.step()
        return daemon

    def unplug(self, slot: str) -> None:
        """Pull a device out."""
        device, daemon = self._there.pop(slot)
        self._source.there.remove(device)
        daemon.close()
        self.step()

    def step(self) -> None:
        """Let each daemon beat, then let the agent look."""
        daemons = [daemon for _, daemon in self._there.values()]
        beat_and_step(self._agent, *daemons)

    def close(self) -> None:
        for _, daemon in self._there.values():
            daemon.close()
        self._stack.close()


@pytest.fixture
def slaves() -> Iterator[list[Slave]]:
    """A list whose slaves are closed after the test."""
    made: list[Slave] = []
    yield made
    for slave in made:
        slave.close()


def slave(slaves: list[Slave], tap: str | None = None) -> Slave:
    slaves.append(Slave(tap))
    return slaves[-1]


def taps() -> set[str]:
    """Return the names of the TAPs."""
    lines = ip("-o", "link", "show").splitlines()
    return {line.split(":")[1].strip() for line in lines} - {"lo"}


def indexes() -> dict[str, int]:
    return {name: socket.if_nametoindex(name) for name in taps()}


def test_taps_come_and_go_with_their_devices(
    slaves: list[Slave], monkeypatch: pytest.MonkeyPatch
) -> None:
    many = slave(slaves, "vp{n}")
    for slot in ("05.0", "06.0", "07.0"):
        many.plug(slot, "net0")
    assert taps() == {"vp0", "vp1", "vp2"}
    index = indexes()["vp1"]
    many.unplug("06.0")
    assert "NO-CARRIER" in ip("link", "show", "vp1")
    # Of its name, in another slot: as the daemon plugs it again.
    many.plug("08.0", "net0")
    assert indexes()["vp1"] == index
    monkeypatch.setattr(agent, "AWAY", 0.0)
    many.unplug("05.0")

    def removed() -> bool:
        many.step()
        return taps() == {"vp1", "vp2"}

    assert eventually(removed)


def test_name_given_twice_fails_only_the_second_device(
    slaves: list[Slave], caplog: pytest.LogCaptureFixture
) -> None:
    many = slave(slaves, "vp0")
    first, second = many.plug("05.0", "one"), many.plug("06.0", "two")
    third = many.plug("07.0", "three")
    for _ in range(3):
        many.step()
    states = [daemon.agent().state for daemon in (first, second, third)]
    assert states == [AgentState.READY, AgentState.FAILED, AgentState.FAILED]
    for part in ("06.0 ('two')", "05.0 ('one') has already", "--tap vp{n}"):
        assert part in second.agent().message
    assert caplog.text.count("06.0 ('two')") == 1
    assert first.ring(0).state.name == "RUNNING"
    assert taps() == {"vp0"}


def test_second_device_gets_the_name_when_the_first_is_unplugged(
    slaves: list[Slave],
) -> None:
    many = slave(slaves, "vp0")
    many.plug("05.0", "one")
    second = many.plug("06.0", "two")
    many.unplug("05.0")
    second.publish(*pair(3), name="two")
    many.step()
    many.step()
    assert second.agent().state is AgentState.READY
    assert taps() == {"vp0"}


def test_name_that_is_too_long_fails_only_its_device(slaves: list[Slave]) -> None:
    many = slave(slaves, "tap-{name}")
    long = many.plug("05.0", "a-very-long-name")
    short = many.plug("06.0", "short")
    assert "tap-a-very-long-name" in long.agent().message
    assert short.agent().state is AgentState.READY
    assert taps() == {"tap-short"}


def test_missing_bridge_fails_only_the_device_that_is_plugged() -> None:
    ip("link", "add", "br0", "type", "bridge")
    many = Slave(bridge="br0")
    first = many.plug("05.0", "one")
    ip("link", "del", "br0")
    second = many.plug("06.0", "two")
    assert first.agent().state is AgentState.READY
    assert "bridge br0 is gone" in second.agent().message
    many.close()
