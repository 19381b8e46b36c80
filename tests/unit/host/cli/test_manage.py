# SPDX-License-Identifier: Apache-2.0
"""The commands that ask a daemon: `status` and `list`, and what they do without one."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.control_daemon import ControlDaemon, leave_behind
from tests.waiting import TIMEOUT
from vhostpci_host.cli.main import main
from vhostpci_host.daemon import control_client


def failed(name: str) -> dict[str, Any]:
    return {"name": name, "mode": "arena", "state": "failed", "reason": "no space"}


def status(directory: Path, *more: str) -> int:
    return main(["status", "--run-dir", str(directory), *more])


def test_killed_daemon_does_not_hide_the_devices_of_the_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    leave_behind(tmp_path / "dead.control")
    with ControlDaemon(tmp_path / "web.control", {"status": failed("web")}):
        assert status(tmp_path) == 0
    out, err = capsys.readouterr()
    assert out == "web: failed: no space\n"
    assert err.startswith("vhostpci-host: dead: no daemon serves it")
    assert str(tmp_path / "dead.control") in err


def test_daemon_that_refuses_does_not_hide_the_devices_of_the_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with (
        ControlDaemon(tmp_path / "db.control", {}),
        ControlDaemon(tmp_path / "web.control", {"status": failed("web")}),
    ):
        assert status(tmp_path, "--json") == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == [failed("web")]
    assert "db: no status here" in err
    assert "the status of 1 " in err


def test_daemon_that_does_not_answer_is_named_with_the_time(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(control_client.ask, "__defaults__", (0.01,))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
        silent.bind(os.fspath(tmp_path / "web.control"))
        silent.listen()
        assert status(tmp_path, "web") == 1
    err = capsys.readouterr().err
    assert f"{tmp_path}/web.control does not answer within 0.01 s" in err
    assert "None" not in err


def test_daemon_of_many_devices_that_hangs_does_not_hide_the_others(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(control_client.ask, "__defaults__", (TIMEOUT / 20,))
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent,
        ControlDaemon(tmp_path / "web.control", {"status": failed("web")}),
    ):
        silent.bind(os.fspath(tmp_path / "control"))
        silent.listen()
        assert status(tmp_path) == 1
    out, err = capsys.readouterr()
    assert out == "web: failed: no space\n"
    assert f"{tmp_path}/control does not answer" in err
    assert "the status of 1 " in err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"", "closed the connection without an answer"),
        (b"hello\n", "no valid JSON"),
        (b"\xff\xfe\n", "no valid JSON"),
        *[(line, "no answer of a vhostpci-host") for line in (b"[]\n", b"null\n")],
        (b'{"state": 1}\n', "no answer of a vhostpci-host"),
        (b'{"ok": false, "error": 5}\n', "no answer of a vhostpci-host"),
        (b'{"ok": true}\n', "no answer of a vhostpci-host"),
    ],
)
def test_what_is_no_answer_of_a_daemon_is_named_with_the_socket(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, line: bytes, said: str
) -> None:
    with ControlDaemon(tmp_path / "web.control", {}, line):
        assert status(tmp_path, "web") == 1
    err = capsys.readouterr().err
    assert f"{tmp_path}/web.control" in err
    assert said in err


def test_directory_that_does_not_exist_has_no_devices(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert status(tmp_path / "none") == 0
    assert capsys.readouterr().out == "no devices\n"


def test_directory_that_may_not_be_read_is_named(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def refuse(_directory: Path) -> list[str]:
        raise PermissionError(13, "Permission denied")

    # Root, who may run the unit tests, is refused no directory.
    monkeypatch.setattr(os, "listdir", refuse)
    assert status(tmp_path) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"cannot look into {tmp_path}: Permission denied; run as its owner" in err
