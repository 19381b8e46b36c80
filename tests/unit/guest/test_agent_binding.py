# SPDX-License-Identifier: Apache-2.0
"""A device that is slow to bind, or to give back, delays no other device."""

import threading
from collections.abc import Iterator, Set
from pathlib import Path

import pytest

from tests.fakes.bar import FakeDaemon, FakeDevice, pair
from tests.fakes.sysfs import FakeSystem
from tests.fakes.uevents import FakeEvents
from tests.unit.guest.loop import answer_time, running
from tests.waiting import TIMEOUT, eventually
from vhostpci_guest.pci.sysfs_device import PciDevice
from vhostpci_guest.pci.watch import PciWatch
from vhostpci_shared import metadata as md

A, B = "0000:00:05.0", "0000:00:06.0"
GIVES_UP = 10.0
"""Seconds that the slow device waits for the test."""


class SlowDevice(FakeDevice):
    """A device whose closing ends when the test says so."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)
        self.closing = threading.Event()
        self.may_close = threading.Event()

    def close(self) -> None:
        self.closing.set()
        assert self.may_close.wait(GIVES_UP)
        super().close()


class Slave:
    """Two PCI functions; the agent serves the first, and binding the second is slow."""

    def __init__(self, root: Path) -> None:
        self.first = FakeDevice(name=A)
        self.second = SlowDevice(B)
        self.daemons = [FakeDaemon(device) for device in (self.first, self.second)]
        for daemon in self.daemons:
            daemon.publish()
        self.binding = threading.Event()
        self.may_bind = threading.Event()
        system = FakeSystem(root)
        self.events = FakeEvents(system)
        self.events.plug(A)
        self.watch = PciWatch(self.events, self.bind, system=system)

    def bind(
        self, pci: PciDevice, _keep: Set[int] | None
    ) -> tuple[int, FakeDevice | None]:
        """Bind a function; runs on the binder's thread."""
        if pci.address == A:
            return 0, self.first
        self.binding.set()
        assert self.may_bind.wait(GIVES_UP)
        return 0, self.second

    def slowest_answer(self) -> float:
        """Return the longest of many quiesces of the first device."""
        times = []
        for session in range(2, 30):
            generation = self.daemons[0].publish(*pair(session))
            self.first.interrupt(md.METADATA_VECTOR)
            times.append(answer_time(self.daemons[0], generation))
        return max(times)

    def close(self) -> None:
        for daemon in self.daemons:
            daemon.close()
        self.second.may_close.set()
        self.second.close()


@pytest.fixture
def slave(tmp_path: Path) -> Iterator[Slave]:
    slave = Slave(tmp_path)
    yield slave
    slave.close()


# A loop that waits for the binder would not answer here until the binder gives up: the
# test goes on only once the answers have come.  A loaded machine needs less than half
# of that time.


def test_quiesce_is_answered_while_another_device_is_bound(slave: Slave) -> None:
    with running(slave.watch, *slave.daemons):
        slave.events.plug(B)
        assert slave.binding.wait(TIMEOUT)
        slowest = slave.slowest_answer()
        slave.may_bind.set()
        assert eventually(lambda: slave.daemons[1].agent().generation > 0)
        slave.second.may_close.set()
    assert slowest < GIVES_UP / 2


def test_quiesce_is_answered_while_another_device_is_given_back(slave: Slave) -> None:
    slave.may_bind.set()
    with running(slave.watch, *slave.daemons):
        slave.events.plug(B)
        assert eventually(lambda: slave.daemons[1].agent().generation > 0)
        slave.events.unplug(B)
        assert slave.second.closing.wait(TIMEOUT)
        slowest = slave.slowest_answer()
        slave.second.may_close.set()
    assert slowest < GIVES_UP / 2
