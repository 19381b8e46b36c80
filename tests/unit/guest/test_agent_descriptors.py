# SPDX-License-Identifier: Apache-2.0
"""An agent that has no descriptors left says which limit that is, and goes on later."""

import errno
import os
import time

import pytest

from tests.fakes.bar import FakeDaemon, FakeDevice, pair
from tests.fakes.plane import FakePort
from tests.fakes.source import FakeSource, beat_and_step
from tests.unit.guest.loop import Planes
from vhostpci_guest import agent as agent_module
from vhostpci_guest.agent import Agent
from vhostpci_guest.errors import Unusable

LINE = "no descriptors are left, of the "


class Shortage:
    """Raises EMFILE as often as it is asked, until it is over."""

    def __init__(self) -> None:
        self.over = False

    def check(self) -> None:
        if not self.over:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


class ShortPort(FakePort):
    """A port whose TAP needs a descriptor."""

    def __init__(self, name: str, planes: Planes, shortage: Shortage) -> None:
        super().__init__(name, planes)
        self._shortage = shortage

    def open(self, queues: int, name: str) -> None:
        try:
            self._shortage.check()
        except OSError as error:
            # As tap.py reports what the kernel refuses.
            raise Unusable(f"cannot make {name}: {error.strerror}") from error
        super().open(queues, name)


class ShortSource(FakeSource):
    """A source that needs a descriptor to look for devices."""

    def __init__(self, *devices: FakeDevice, shortage: Shortage) -> None:
        super().__init__(*devices)
        self._shortage = shortage

    def look(self) -> None:
        self._shortage.check()


class ShortControl:
    """A status socket that needs a descriptor for each question."""

    def __init__(self, shortage: Shortage) -> None:
        self.looks = 0
        self._shortage = shortage

    def look(self, status: object, ask: object) -> None:
        self.looks += 1
        self._shortage.check()

    def events(self) -> list[tuple[int, int]]:
        return []


@pytest.fixture(autouse=True)
def _short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "SHORTAGE", 0.02)


def test_device_is_served_once_there_is_a_descriptor_for_its_tap(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device, planes, shortage = FakeDevice(), Planes(), Shortage()
    daemon = FakeDaemon(device)
    daemon.publish(*pair(2))
    agent = Agent(FakeSource(device), lambda name: ShortPort(name, planes, shortage))
    for _ in range(10):
        beat_and_step(agent, daemon)
        time.sleep(0.005)
    assert caplog.text.count(LINE) == 1
    assert "ulimit -n" in caplog.text
    assert not planes.made
    shortage.over = True
    time.sleep(0.03)
    for _ in range(3):
        beat_and_step(agent, daemon)
    assert set(planes.made[0].running) == {0, 1}
    daemon.close()
    agent.close()


def test_devices_are_served_while_there_is_no_descriptor_to_look_for_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device, planes, shortage = FakeDevice(), Planes(), Shortage()
    shortage.over = True
    daemon = FakeDaemon(device)
    agent = Agent(ShortSource(device, shortage=shortage), planes.port)
    beat_and_step(agent, daemon)
    shortage.over = False
    daemon.publish(*pair(2))
    for _ in range(10):
        beat_and_step(agent, daemon)
        time.sleep(0.005)
    assert set(planes.made[0].running) == {0, 1}
    assert caplog.text.count(LINE) == 1
    daemon.close()
    agent.close()


def test_agent_that_serves_nothing_yet_ends_without_descriptors() -> None:
    agent = Agent(ShortSource(shortage=Shortage()), Planes().port)
    with pytest.raises(OSError, match="Too many open files"):
        agent.step()
    agent.close()


def test_question_for_the_status_waits_for_a_descriptor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It stays readable; without the pause, the loop would do nothing else."""
    shortage = Shortage()
    control = ShortControl(shortage)
    agent = Agent(FakeSource(), Planes().port, control)  # type: ignore[arg-type]
    began = time.monotonic()
    for _ in range(20):
        agent.step()
    # Once, and again after each pause: these steps may have taken longer than one.
    pauses = (time.monotonic() - began) / agent_module.SHORTAGE
    assert control.looks <= 1 + pauses
    assert caplog.text.count(LINE) == 1
    looks = control.looks
    time.sleep(0.03)
    agent.step()
    assert control.looks == looks + 1
    agent.close()
