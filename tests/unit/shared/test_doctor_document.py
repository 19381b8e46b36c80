# SPDX-License-Identifier: Apache-2.0
"""docs/doctor.md has a row for each check of `doctor`, on both sides."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from vhostpci_guest.doctor.checks import CHECKS as IN_SLAVE
from vhostpci_host.doctor.checks import CHECKS as ON_HYPERVISOR
from vhostpci_shared.findings import Check, Level

DOCUMENT = Path(__file__).parents[3] / "docs/doctor.md"


def rows(heading: str) -> list[tuple[str, str]]:
    """Return the rows of the table below a heading."""
    part = DOCUMENT.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \| (.*) \|$", part, re.MULTILINE)


@pytest.mark.parametrize(
    ("heading", "checks"),
    [("On the hypervisor", ON_HYPERVISOR), ("In the slave", IN_SLAVE)],
)
def test_table_of_the_document_is_that_of_the_code(
    heading: str, checks: Sequence[Check[Any]]
) -> None:
    assert rows(heading) == [(check.name, check.title) for check in checks]


def test_levels_are_in_the_document() -> None:
    found = re.findall(r"^\| `(\w+)` \| .* \| [01] \|$", DOCUMENT.read_text(), re.M)
    assert found == [level.value for level in Level]
