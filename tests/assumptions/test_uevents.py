# SPDX-License-Identifier: Apache-2.0
"""What we need of libudev and pyudev: that events come without udevd, and losses show.

The kernel says ``change`` of a PCI device when somebody writes that to its `uevent`.
"""

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostpci_guest.pci.uevents import Overrun, Uevent, Uevents

DEVICES = Path("/sys/bus/pci/devices")


@pytest.fixture
def uevents() -> Iterator[Uevents]:
    uevents = Uevents()
    yield uevents
    uevents.close()


@pytest.fixture
def address(uevents: Uevents) -> str:
    """A PCI device that may be asked to say something."""
    for address in uevents.addresses():
        if os.access(DEVICES / address / "uevent", os.W_OK):
            return address
    pytest.skip("no PCI device whose `uevent` may be written")


def change(address: str, times: int = 1) -> None:
    for _ in range(times):
        (DEVICES / address / "uevent").write_text("change")


def test_event_comes_from_the_kernel(uevents: Uevents, address: str) -> None:
    change(address)
    assert select.select([uevents], [], [], 1)[0]
    assert Uevent("change", address) in uevents.read()
    assert uevents.read() == []


def test_overrun_is_told_once_and_events_come_again(
    uevents: Uevents, address: str
) -> None:
    uevents._monitor.set_receive_buffer_size(2048)
    change(address, times=200)
    with pytest.raises(Overrun):
        uevents.read()
    uevents.read()
    change(address)
    assert Uevent("change", address) in uevents.read()
