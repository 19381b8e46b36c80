# SPDX-License-Identifier: Apache-2.0
"""A source of devices that come and go when the test says so."""

from collections.abc import Iterable

from tests.fakes.bar import FakeDaemon, FakeWindows
from vhostpci_guest.agent import Agent
from vhostpci_guest.interfaces import Device


class FakeSource:
    """A source whose devices the test plugs and unplugs."""

    interval = None

    def __init__(self, *devices: Device, single: bool = True) -> None:
        self.there: list[Device] = list(devices)
        self.single = single
        self.refused: list[Device] = []
        self.closed = False

    def look(self) -> None:
        """Nothing happens by itself."""

    def devices(self) -> Iterable[Device]:
        """Return what is plugged in."""
        return self.there

    def windows(self, device: Device) -> FakeWindows:
        """Return windows of its own."""
        return FakeWindows()

    def fds(self) -> Iterable[int]:
        """Return none."""
        return ()

    def refuse(self, device: Device) -> None:
        """Show it no more."""
        self.there.remove(device)
        self.refused.append(device)

    def give_back(self, device: Device) -> None:
        """Close a device at once."""
        device.close()

    def close(self) -> None:
        """Remember it."""
        self.closed = True


def beat_and_step(agent: Agent, *daemons: FakeDaemon) -> None:
    """Let the daemons live, and the agent look."""
    for daemon in daemons:
        daemon.beat()
    agent.step()
