# SPDX-License-Identifier: Apache-2.0
"""The three distributions are one release."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

import vhostpci_host
import vhostpci_shared

ROOT = Path(__file__).parents[3]
PARTS = ("shared", "host", "guest")


def project(part: str) -> dict[str, Any]:
    text = (ROOT / part / "pyproject.toml").read_text()
    table: dict[str, Any] = tomllib.loads(text)["project"]
    return table


def test_three_distributions_have_one_version() -> None:
    versions = {project(part)["version"] for part in PARTS}
    assert versions == {vhostpci_shared.__version__}
    assert vhostpci_host.__version__ == vhostpci_shared.__version__


@pytest.mark.parametrize("part", ["host", "guest"])
def test_shared_is_needed_in_the_very_same_version(part: str) -> None:
    needed = f"vhostpci-shared=={vhostpci_shared.__version__}"
    assert needed in project(part)["dependencies"]
