# SPDX-License-Identifier: Apache-2.0
"""What `make soak` runs for half an hour, for some seconds."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.soak import kills, upgrades

pytestmark = pytest.mark.process


@pytest.fixture
def directory() -> Iterator[Path]:
    """A place with a short name: a socket's path has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vhp-", dir="/dev/shm") as name:
        yield Path(name)


def test_upgrades_are_noticed_by_nothing(directory: Path) -> None:
    result = upgrades.run(directory, devices=20, upgrades=3)
    assert result.problems(longest_gap=30.0) == []
    assert result.trips > 0


def test_packets_of_all_kinds_go_on_whatever_is_killed(directory: Path) -> None:
    report = kills.run(directory, 120.0, 5.0, seed=int(time.time()), patience=5.0)
    print("\n".join(report.lines()))
    assert report.problems == []
    assert report.packets > 10_000
    assert len(report.gaps) > 1
