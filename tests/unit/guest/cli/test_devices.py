# SPDX-License-Identifier: Apache-2.0
"""What is found out of a device that an agent has: nothing by touching it."""

import struct
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.sysfs import FakeSystem
from tests.unit.guest.pci.plugged import HERE, device
from vhostpci_guest.cli.devices import describe, lines
from vhostpci_shared import metadata as md
from vhostpci_shared.terminal import Terminal

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


def test_device_of_a_confined_master_is_said_to_be_one(tmp_path: Path) -> None:
    here = device(FakeSystem(tmp_path))
    confined = {"shared": 80 << 20, "memory": 4 << 30}
    link = {"device": HERE, "windows": [], "pid": 1, "confined": confined}
    found = describe(here, [link])
    assert found["confined"] == confined
    assert any("confined: 80 MiB of 4 GiB" in one for one in lines(found, Terminal()))
    assert describe(here, [{**link, "confined": None}])["confined"] is None
