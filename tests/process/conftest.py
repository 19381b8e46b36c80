# SPDX-License-Identifier: Apache-2.0
"""A lab for each test, and a lab that the tests of one file share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.netns import private_network
from tests.process.lab import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """An empty lab for one test, in a separate network namespace.

    For tests that end, kill, stop or cut something, or need other options or another
    order of starts: what they leave would be in the way of other tests.
    """
    with private_network(), Lab(tmp_path) as lab:
        yield lab


@pytest.fixture
def shared(started: Lab) -> Iterator[Lab]:
    """The lab that the file starts once in its fixture `started`.

    For tests that only send packets, ask for the status, or connect and disconnect.
    A test that leaves this lab changed fails.
    """
    with started.unchanged():
        yield started
