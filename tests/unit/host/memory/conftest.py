# SPDX-License-Identifier: Apache-2.0
"""Places for an arena: where it belongs, and where there is little room."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import tmpfs
from tests.fakes.windows import MIB
from vhostpci_host.config.device import DeviceConfig


@pytest.fixture
def shm() -> Iterator[Path]:
    """An empty directory on tmpfs."""
    with tempfile.TemporaryDirectory(prefix="vhostpci-unit-", dir="/dev/shm") as path:
        yield Path(path)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 8 MiB."""
    if os.geteuid():
        pytest.skip("to mount a tmpfs needs root")
    with tmpfs.mounted(tmp_path / "small", 8) as path:
        yield path


@pytest.fixture
def config(shm: Path) -> DeviceConfig:
    """A device whose arena has 16 MiB of RAM in a window of 32 MiB."""
    return DeviceConfig(name="dev", memory=16 * MIB, run_dir=shm, memory_dir=shm)
