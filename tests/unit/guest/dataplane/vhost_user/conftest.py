# SPDX-License-Identifier: Apache-2.0
"""A data plane with its socket, the master's memory, and back-ends that come."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.guest.dataplane.vhost_user.scene import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A data plane without a back-end, for a device of one queue pair."""
    with Scene(tmp_path / "socket") as scene:
        yield scene
