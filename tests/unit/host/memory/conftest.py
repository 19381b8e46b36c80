# SPDX-License-Identifier: Apache-2.0
"""A place for an arena where it belongs."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.windows import MIB
from vhostpci_host.config.device import DeviceConfig


@pytest.fixture
def shm() -> Iterator[Path]:
    """An empty directory on tmpfs."""
    with tempfile.TemporaryDirectory(prefix="vhostpci-unit-", dir="/dev/shm") as path:
        yield Path(path)


@pytest.fixture
def config(shm: Path) -> DeviceConfig:
    """A device whose arena has 16 MiB of RAM in a window of 32 MiB."""
    return DeviceConfig(name="dev", memory=16 * MIB, run_dir=shm, memory_dir=shm)
