# SPDX-License-Identifier: Apache-2.0
"""What several of the agent's tests start with."""

import os
from collections.abc import Iterator

import pytest

from tests.fakes.netns import private_network
from tests.unit.guest.bench import Bench
from vhostpci_guest.tap.tap import NODE


@pytest.fixture
def network() -> Iterator[None]:
    """A network of the test's own."""
    if os.geteuid() != 0 or not NODE.exists():
        pytest.skip(f"needs root and {NODE}")
    with private_network():
        yield


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A link to a daemon that has no master yet."""
    bench = Bench()
    bench.daemon.publish()
    bench.attach()
    yield bench
    bench.close()
