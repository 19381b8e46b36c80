# SPDX-License-Identifier: Apache-2.0
"""What `list` and `status` print, whole, for terminals of several kinds."""

import json
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests import golden
from vhostpci_host.cli import print_status

HERE = Path(__file__).parent / "golden"
NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)


def load(name: str) -> Any:
    """Return a daemon's answer, with what the command line adds."""
    return json.loads((HERE / name).read_text())


def alone(status: dict[str, Any]) -> dict[str, Any]:
    """Return the status of the same device before anything has come."""
    status = deepcopy(status)
    status |= {"master": None, "slave": None, "state": "no master", "rates": None}
    status["agent"] |= {"present": False, "state": "none", "binding": ""}
    status["agent"]["data_plane"] = ""
    for ring in status["rings"]:
        ring |= {"state": "stopped", "size": 0, "used_index": 0, "fill": None}
        ring |= {"agent": None, "enabled": False}
    return status


@pytest.mark.parametrize("kind", golden.TERMINALS)
def test_status(kind: str) -> None:
    text = print_status.text(load("status.json"), golden.TERMINALS[kind])
    golden.check(HERE / f"status-{kind}.txt", text)


@pytest.mark.parametrize("kind", ["80", "40"])
def test_status_of_a_device_that_waits(kind: str) -> None:
    status = alone(load("status.json"))
    text = print_status.text(status, golden.TERMINALS[kind])
    golden.check(HERE / f"status-alone-{kind}.txt", text)


@pytest.mark.parametrize("kind", golden.TERMINALS)
def test_list(kind: str) -> None:
    text = print_status.table(load("list.json"), golden.TERMINALS[kind])
    golden.check(HERE / f"list-{kind}.txt", text)
