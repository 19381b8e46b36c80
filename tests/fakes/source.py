# SPDX-License-Identifier: Apache-2.0
"""A fake source of devices, which the test plugs and unplugs."""

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
        """Do nothing: only the test changes what is plugged."""

    def devices(self) -> Iterable[Device]:
        """Return the plugged devices."""
        return self.there

    def windows(self, device: Device) -> FakeWindows:
        """Return new, empty windows for a device."""
        return FakeWindows()

    def fds(self) -> Iterable[int]:
        """Return no descriptor: there is nothing to wait for."""
        return ()

    def refuse(self, device: Device) -> None:
        """Stop offering a device, and record it."""
        self.there.remove(device)
        self.refused.append(device)

    def give_back(self, device: Device) -> None:
        """Close a device at once."""
        device.close()

    def close(self) -> None:
        """Record that the source is closed."""
        self.closed = True


def beat_and_step(agent: Agent, *daemons: FakeDaemon) -> None:
    """Let each daemon beat once, then let the agent look once."""
    for daemon in daemons:
        daemon.beat()
    agent.step()
