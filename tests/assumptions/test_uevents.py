# SPDX-License-Identifier: Apache-2.0
"""What we need of libudev and pyudev: events without udevd, and an error for a loss.

The kernel sends a ``change`` event of a PCI device when a process writes that word to
its file `uevent`.
"""

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import TIMEOUT
from vhostpci_guest.pci.uevents import Overrun, Uevent, Uevents

DEVICES = Path("/sys/bus/pci/devices")


@pytest.fixture
def uevents() -> Iterator[Uevents]:
    uevents = Uevents()
    yield uevents
    uevents.close()


@pytest.fixture
def address(uevents: Uevents) -> str:
    """A PCI device that we may have the kernel send events of."""
    for address in uevents.addresses():
        if os.access(DEVICES / address / "uevent", os.W_OK):
            return address
    pytest.skip("no PCI device whose `uevent` may be written")


def change(address: str, times: int = 1) -> None:
    for _ in range(times):
        (DEVICES / address / "uevent").write_text("change")


def test_event_comes_from_the_kernel(uevents: Uevents, address: str) -> None:
    change(address)
    assert select.select([uevents], [], [], TIMEOUT)[0]
    assert Uevent("change", address) in uevents.read()
    assert uevents.read() == []


def test_overrun_is_reported_once_and_later_events_arrive(
    uevents: Uevents, address: str
) -> None:
    uevents._monitor.set_receive_buffer_size(2048)
    change(address, times=200)
    with pytest.raises(Overrun):
        uevents.read()
    uevents.read()
    change(address)
    assert Uevent("change", address) in uevents.read()
