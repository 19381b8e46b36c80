# SPDX-License-Identifier: Apache-2.0
"""A lab in attach mode for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.netns import private_network
from tests.process.attach import AttachLab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[AttachLab]:
    """An empty lab, in a separate network namespace."""
    with private_network(), AttachLab(tmp_path) as lab:
        yield lab
