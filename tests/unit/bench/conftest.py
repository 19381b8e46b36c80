# SPDX-License-Identifier: Apache-2.0
"""Matplotlib opens its fonts at the first picture and keeps them, which is no leak."""

from pathlib import Path

import pytest

from tests.bench.picture import draw
from tests.unit.bench.test_figures import FIGURE


@pytest.fixture(scope="session", autouse=True)
def open_fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Draw a picture before descriptors are counted."""
    path: Path = tmp_path_factory.mktemp("fonts")
    draw([FIGURE], "title", path / "first.png")
