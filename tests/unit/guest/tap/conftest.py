# SPDX-License-Identifier: Apache-2.0
"""What tests of the TAP need of the kernel."""

import os
from collections.abc import Iterator

import pytest

from tests.fakes.netns import private_network


@pytest.fixture
def elsewhere(network: None) -> Iterator[int]:
    """A descriptor of another network namespace than the test's own."""
    with private_network():
        fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    yield fd
    os.close(fd)
