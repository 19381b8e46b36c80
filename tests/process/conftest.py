# SPDX-License-Identifier: Apache-2.0
"""A lab for each test, and a lab that the tests of one file share."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.fakes.netns import private_network
from tests.process.lab import Lab
from tests.process.shared import Shared


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """An empty lab for one test, in a separate network namespace.

    For tests that end, kill, stop or cut something, or need other options or another
    order of starts: what they leave would be in the way of other tests.
    """
    with private_network(), Lab(tmp_path) as lab:
        yield lab


@pytest.fixture(scope="module")
def started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared[Lab]]:
    """The lab that the file's function `start_shared` starts for its tests."""

    def start() -> AbstractContextManager[Lab]:
        directory = tmp_path_factory.mktemp("lab")
        lab: AbstractContextManager[Lab] = request.module.start_shared(directory)
        return lab

    with Shared(start, lambda lab: lab.unchanged()) as started:
        yield started


@pytest.fixture
def shared(started: Shared[Lab]) -> Iterator[Lab]:
    """The lab that the tests of a file share.

    For tests that only send packets, ask for the status, or connect and disconnect.
    A test that leaves this lab changed fails, and the next test gets a new one.
    """
    with started.lent() as lab:
        yield lab
