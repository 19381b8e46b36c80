# SPDX-License-Identifier: Apache-2.0
"""`vhostpci-host metrics`: devices that failed, daemons that do not answer."""

import os
import socket
from pathlib import Path

import pytest

from tests.fakes.control_daemon import ControlDaemon
from tests.fakes.loop import ManualLoop
from tests.fakes.windows import MIB
from tests.unit.host.scene import Scene
from vhostpci_host.cli.main import main
from vhostpci_host.device.status import describe

FAILED = {"name": "web", "mode": "arena", "state": "failed", "reason": "no space"}


def test_failed_device_and_silent_daemon_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.prom"
    with (
        ControlDaemon(tmp_path / "db.control", {}),
        ControlDaemon(tmp_path / "web.control", {"status": FAILED}),
    ):
        words = ["--run-dir", str(tmp_path), "--textfile", str(path)]
        assert main(["metrics", *words]) == 1
    text = path.read_text()
    assert 'vhostpci_device_failed{device="web"} 1\n' in text
    assert 'vhostpci_device_up{device="web"} 0\n' in text
    assert "vhostpci_scrape_errors 1\n" in text


@pytest.mark.parametrize(
    ("memory", "confined", "said"),
    [
        (1024, True, {"": 1, "_shared_bytes": 32 * MIB, "_memory_bytes": 1024 * MIB}),
        (0, True, {"": 1, "_shared_bytes": 32 * MIB}),  # attach mode
        (1024, False, {"": 0}),
    ],
)
def test_memory_of_a_confined_device_is_there(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    memory: int,
    confined: bool,
    said: dict[str, int],
) -> None:
    with Scene(tmp_path, ManualLoop(), memory=memory * MIB, confined=confined) as scene:
        status = describe(scene.device)
    (tmp_path / "daemon").mkdir()
    with ControlDaemon(tmp_path / "daemon" / "dev.control", {"status": status}):
        assert main(["metrics", "--run-dir", str(tmp_path / "daemon")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [one for one in lines if one.startswith("vhostpci_device_confined")] == [
        f'vhostpci_device_confined{name}{{device="dev"}} {value}'
        for name, value in said.items()
    ]


def test_file_that_cannot_be_written_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--run-dir", str(tmp_path), "--textfile", str(tmp_path / "no" / "a")]
    assert main(["metrics", *words]) == 1
    assert f"cannot write {tmp_path}/no/a: No such file" in capsys.readouterr().err


def test_socket_that_is_taken_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "taken"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(os.fspath(path))
        other.listen()
        words = ["--run-dir", str(tmp_path), "--listen", f"unix:{path}"]
        assert main(["metrics", *words]) == 1
    assert "Address already in use" in capsys.readouterr().err


def test_wrong_address_is_an_error_of_the_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["metrics", "--listen", "9700"]) == 2
    assert "write ADDRESS:PORT" in capsys.readouterr().err
