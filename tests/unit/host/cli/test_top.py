# SPDX-License-Identifier: Apache-2.0
"""`vhostpci-host top` without a terminal: blocks of lines, as `top -b`."""

import json
from pathlib import Path

import pytest

from tests.fakes.control_daemon import ControlDaemon, leave_behind
from vhostpci_host.cli.main import main

STATUS = json.loads((Path(__file__).parent / "golden/status.json").read_text())


def test_one_look_is_printed_and_a_dead_daemon_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_behind(tmp_path / "dead.control")
    with ControlDaemon(tmp_path / "web.control", {"status": STATUS}):
        words = ["top", "--once", "-d", "0.2", "--run-dir", str(tmp_path)]
        assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("vhostpci-host: 2 devices, over 0.")
    assert lines[1].startswith("dead  no answer  no daemon at ")
    assert lines[2].startswith("web  running  master ")
    assert lines[4].split()[:3] == ["rx0", "0", "0"]


def test_confined_device_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    confined = {"shared": 80 << 20, "memory": 4 << 30, "pool": 64 << 20}
    status = STATUS | {"confined": confined}
    with ControlDaemon(tmp_path / "web.control", {"status": status}):
        words = ["top", "--once", "-d", "0.2", "--run-dir", str(tmp_path)]
        assert main(words) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("web  running  confined 80 MiB of 4 GiB, master ")


def test_top_without_a_daemon_is_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "--once", "--run-dir", str(tmp_path)]) == 1
    assert "see --run-dir" in capsys.readouterr().err
