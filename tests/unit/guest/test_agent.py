# SPDX-License-Identifier: Apache-2.0
"""The agent's loop: plugged devices, signals, and the status."""

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import pytest

from tests.fakes.bar import FakeDaemon, FakeDevice, pair
from tests.fakes.plane import FakePort
from tests.fakes.source import FakeSource, beat_and_step
from tests.unit.guest.loop import Planes, answer_time, running
from vhostpci_guest.agent import AWAY, Agent, stopped_by_signals
from vhostpci_guest.errors import Unusable
from vhostpci_shared import metadata as md
from vhostpci_shared.metadata import AgentState


def test_plugged_device_is_served_and_unplugged_one_is_given_back() -> None:
    device = FakeDevice()
    daemon = FakeDaemon(device)
    daemon.publish(*pair(2))
    planes = Planes()
    source = FakeSource()
    agent = Agent(source, planes.port)
    agent.step()
    source.there.append(device)
    agent.step()
    beat_and_step(agent, daemon)
    assert set(planes.made[0].running) == {0, 1}
    daemon.close()
    source.there.clear()
    agent.step()
    assert planes.made[0].closed
    assert device.closed
    agent.close()


def test_tap_outlives_its_device() -> None:
    source = FakeSource()
    port = FakePort()
    agent = Agent(source, lambda _name: port)
    for _ in range(2):
        device = FakeDevice(name="net0.ivshmem")
        daemon = FakeDaemon(device)
        daemon.publish(name="net0")
        source.there = [device]
        agent.step()
        beat_and_step(agent, daemon)
        daemon.close()
        source.there = []
        agent.step()
    agent.close()
    assert port.doings == ["open net0", "open net0", "close"]


def test_rings_stop_also_where_what_waits_in_the_tap_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their workers would read and write memory that is unmapped when we end."""

    def fail(_: FakePort) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    device = FakeDevice()
    daemon = FakeDaemon(device)
    daemon.publish(*pair(2))
    planes = Planes()
    agent = Agent(FakeSource(device), planes.port)
    agent.step()
    beat_and_step(agent, daemon)
    monkeypatch.setattr(FakePort, "idle", property(fail))
    with pytest.raises(OSError, match="Input/output error"):
        agent.close()
    assert planes.made[0].closed
    assert device.closed
    daemon.close()


@pytest.mark.parametrize("end", ["unplug", "close"])
def test_device_is_given_back_after_its_data_plane_is_closed_also_if_a_stop_fails(
    monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """The data plane's threads would ring a doorbell that is unmapped."""

    def fail(what: str, index: int) -> NoReturn:
        raise OSError(errno.EIO, f"cannot {what} ring {index}")

    device, planes = FakeDevice(), Planes()
    daemon = FakeDaemon(device)
    daemon.publish(*pair(2))
    source = FakeSource(device)
    agent = Agent(source, planes.port)
    agent.step()
    beat_and_step(agent, daemon)
    (plane,) = planes.made
    plane.watch = fail
    closed = []

    def give_back(device: FakeDevice) -> None:
        closed.append(plane.closed)
        device.close()

    monkeypatch.setattr(source, "give_back", give_back)
    daemon.close()
    if end == "unplug":
        source.there.clear()
    with pytest.raises(OSError, match="cannot stop ring"):
        agent.step() if end == "unplug" else agent.close()
    assert closed == [True]
    if end == "unplug":
        agent.close()


def test_devices_are_served_side_by_side() -> None:
    devices = [FakeDevice(name=f"0000:00:0{n}.0") for n in range(3)]
    daemons = [FakeDaemon(device) for device in devices]
    for daemon in daemons:
        daemon.publish(*pair(2))
    agent = Agent(FakeSource(*devices), Planes().port)
    agent.step()
    beat_and_step(agent, *daemons)
    names = [status["device"] for status in agent.status()]
    assert names == [device.name for device in devices]
    for daemon in daemons:
        daemon.close()
    agent.close()


def test_only_device_without_metadata_ends_the_agent_and_is_given_back() -> None:
    device = FakeDevice()
    agent = Agent(FakeSource(device), Planes().port)
    with pytest.raises(Unusable, match=r"0000:00:05\.0: no vhostpci metadata"):
        agent.step()
    agent.close()
    assert device.closed


def test_device_without_metadata_is_refused_and_others_are_served(
    caplog: pytest.LogCaptureFixture,
) -> None:
    foreign, ours = FakeDevice(name="0000:00:05.0"), FakeDevice(name="0000:00:06.0")
    daemon = FakeDaemon(ours)
    daemon.publish(*pair(2))
    source = FakeSource(foreign, ours, single=False)
    planes = Planes()
    agent = Agent(source, planes.port)
    for _ in range(3):
        beat_and_step(agent, daemon)
    assert source.refused == [foreign]
    assert foreign.closed
    assert caplog.text.count("0000:00:05.0: no vhostpci metadata") == 1
    assert set(planes.made[0].running) == {0, 1}
    daemon.close()
    agent.close()


class Two:
    """An agent that serves two devices, the first of which has too few vectors."""

    def __init__(self) -> None:
        self.devices = [
            FakeDevice(name="0000:00:05.0", vectors=2),
            FakeDevice(name="0000:00:06.0"),
        ]
        self.daemons = [FakeDaemon(device) for device in self.devices]
        self.planes = Planes()
        self.ports: dict[str, FakePort] = {}
        self.source = FakeSource(*self.devices, single=False)
        self.agent = Agent(self.source, self.make_port)
        for daemon in self.daemons:
            daemon.publish(*pair(2))
        self.step()

    def make_port(self, name: str) -> FakePort:
        self.ports[name] = self.planes.port(name)
        return self.ports[name]

    def step(self) -> None:
        beat_and_step(self.agent, *self.daemons)

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.close()
        self.agent.close()


@pytest.fixture
def two() -> Iterator[Two]:
    two = Two()
    yield two
    two.close()


def test_failed_device_does_not_affect_another(
    two: Two, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        two.step()
    failed, serving = (daemon.agent() for daemon in two.daemons)
    assert failed.state is AgentState.FAILED
    assert "vectors=3" in failed.message
    assert serving.state is AgentState.READY
    assert set(two.planes.made[0].running) == {0, 1}
    assert caplog.text.count("vectors=3") == 1


def test_failed_device_is_tried_again_when_its_daemon_publishes(two: Two) -> None:
    generation = two.daemons[0].publish(*pair(3))
    two.devices[0].vector_count = 3
    two.step()
    assert two.daemons[0].agent().state is AgentState.READY
    assert two.daemons[0].agent().generation == generation


def test_lack_of_threads_for_one_device_leaves_another_running(two: Two) -> None:
    two.step()
    two.devices[0].vector_count = 3
    two.planes.no_more = True
    two.daemons[0].publish(*pair(3))
    two.step()
    assert "no thread" in two.daemons[0].agent().message
    assert set(two.planes.made[0].running) == {0, 1}


def test_tap_of_a_pci_device_stays_a_while_when_it_is_unplugged(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    two.daemons.pop().close()
    two.source.there.remove(two.devices[1])
    two.agent.step()
    port = two.ports["0000:00:06.0"]
    assert port.doings[-1] == "leave"
    now = time.monotonic()
    for later, doing in ((AWAY - 1, "leave"), (AWAY + 1, "close")):
        with monkeypatch.context() as patched:
            patched.setattr(time, "monotonic", lambda later=later: now + later)
            two.agent.step()
        assert port.doings[-1] == doing


def test_failed_device_is_tried_again_when_another_is_unplugged(two: Two) -> None:
    two.step()
    two.devices[0].vector_count = 3
    two.step()
    assert two.daemons[0].agent().state is AgentState.FAILED
    two.daemons.pop().close()
    two.source.there.remove(two.devices[1])
    two.step()
    assert two.daemons[0].agent().state is AgentState.READY


def test_end_closes_the_source(two: Two) -> None:
    two.agent.close()
    assert two.source.closed


def test_end_waits_until_the_rings_have_taken_what_waits_in_the_tap(two: Two) -> None:
    """Without a carrier, so that the slave's kernel gives the TAP nothing more."""
    two.step()
    port = two.ports["0000:00:06.0"]
    port.plugged, port.waiting = True, [True] * 3
    seen: list[tuple[bool, int]] = []
    port.watch = lambda: seen.append((port.plugged, len(two.planes.made[-1].running)))
    two.agent.close()
    assert seen[:4] == [(False, 2)] * 4
    assert not port.waiting


def test_end_does_not_wait_for_a_master_that_takes_nothing(two: Two) -> None:
    two.step()
    port = two.ports["0000:00:06.0"]
    port.plugged, port.waiting = True, [True] * 10_000
    two.agent.close()
    assert port.waiting


@pytest.mark.parametrize("interrupts", [True, False], ids=["interrupts", "polling"])
def test_quiesce_is_answered_soon(interrupts: bool) -> None:
    device = FakeDevice(interrupts=interrupts)
    daemon = FakeDaemon(device)
    daemon.publish()
    with running(FakeSource(device), daemon):
        late = []
        for session in range(2, 30):
            generation = daemon.publish(*pair(session))
            if interrupts:
                device.interrupt(md.METADATA_VECTOR)
            late.append(answer_time(daemon, generation))
    daemon.close()
    # A link that polls looks every 5 ms; one that does not wake for its daemon answers
    # after 100 ms or more.  A loaded machine stays below the limit in between.
    assert sorted(late)[len(late) // 2] < 0.05


def test_idle_agent_sleeps() -> None:
    device = FakeDevice(interrupts=False)
    daemon = FakeDaemon(device)
    daemon.publish(*pair(2))
    with running(FakeSource(device), daemon):
        before = time.process_time()
        time.sleep(0.5)
        used = time.process_time() - before
    daemon.close()
    assert used < 0.1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_loop(number: signal.Signals) -> None:
    device = FakeDevice()
    daemon = FakeDaemon(device)
    daemon.publish()
    agent = Agent(FakeSource(device), Planes().port)
    with stopped_by_signals() as signals:
        timer = threading.Timer(0.1, os.kill, (os.getpid(), number))
        timer.start()
        agent.run(signals)
        timer.join()
    daemon.close()
    agent.close()
    assert device.closed


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_signal_without_a_meaning_is_ignored(number: signal.Signals) -> None:
    """It would end the agent, which would give nothing back."""
    handled: list[int] = []
    before = signal.signal(number, lambda number, _: handled.append(number))
    try:
        with stopped_by_signals() as signals:
            os.kill(os.getpid(), number)
            assert not signals.stopping
        assert handled == []
        os.kill(os.getpid(), number)
        assert handled == [number]
    finally:
        signal.signal(number, before)


def test_signal_handlers_are_restored_after_the_loop() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopped_by_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_status_of_a_link_is_json() -> None:
    device = FakeDevice()
    daemon = FakeDaemon(device)
    daemon.publish(*pair(2))
    agent = Agent(FakeSource(device), Planes().port)
    agent.step()
    beat_and_step(agent, daemon)
    (status,) = json.loads(json.dumps(agent.status()))
    assert status["rings"][1]["state"] == "running"
    daemon.close()
    agent.close()
