# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the tests of the agent's PCI part."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.sysfs import FakeSystem
from tests.unit.guest.pci.watched_vm import WatchedVm


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[WatchedVm]:
    """Make a slave VM without functions, and close its watch after the test."""
    machine = WatchedVm(tmp_path)
    yield machine
    machine.close()


@pytest.fixture
def system(tmp_path: Path) -> FakeSystem:
    """Return a slave VM without functions, whose kernel has two stock drivers."""
    return FakeSystem(tmp_path, "vfio-pci", "uio_pci_generic")
