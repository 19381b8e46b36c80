# SPDX-License-Identifier: Apache-2.0
"""What is found out of a device that an agent has: nothing by touching it."""

import struct
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.sysfs import FakeSystem
from tests.unit.guest.pci.plugged import HERE, device
from vhostpci_guest.cli.devices import describe
from vhostpci_shared import metadata as md

WINDOW = 300


@pytest.mark.parametrize(
    ("link", "position"),
    [
        ({"device": HERE, "windows": []}, md.SLAVE_ID),
        ({"device": "other", "windows": [{"id": WINDOW, "device": HERE}]}, WINDOW),
    ],
    ids=["device", "window"],
)
def test_position_of_what_an_agent_has_is_not_read_from_it(
    tmp_path: Path, link: dict[str, Any], position: int
) -> None:
    system = FakeSystem(tmp_path)
    here = device(system)
    (here.path / "resource0").write_bytes(struct.pack("<8xI244x", 42))
    (here.path / "config").write_bytes(bytes(256))  # its memory is off
    assert describe(here, [{"pid": 1, **link}])["iv_position"] == position
    assert system.writes == []
