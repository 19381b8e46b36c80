# SPDX-License-Identifier: Apache-2.0
"""A lab for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.netns import private_network
from tests.process.lab import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """An empty lab, in a network namespace of its own."""
    with private_network(), Lab(tmp_path) as lab:
        yield lab
