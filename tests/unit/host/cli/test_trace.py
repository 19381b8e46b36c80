# SPDX-License-Identifier: Apache-2.0
"""`trace`: what it prints of the answers of a daemon."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.control_daemon import ControlDaemon
from vhostpci_host.cli import trace
from vhostpci_host.cli.main import main
from vhostpci_host.daemon import control_client
from vhostpci_host.vhost_user.conversation import Conversation
from vhostpci_host.vhost_user.message import Message
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request


def conversation() -> Conversation:
    found = Conversation("web", lambda: 1000.25)
    found.note("front-end (pid 7) connected")
    found.heard(Message.of(Request.SET_VRING_NUM, vu.VringState(1, 256)))
    return found


@pytest.mark.parametrize("words", [[], ["-j"]], ids=["text", "json"])
def test_what_was_said_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    answer = {"pid": 1, **conversation().since(0)}
    with ControlDaemon(tmp_path / "web.control", {"conversation": answer}):
        line = ["trace", "web", "--once", "--run-dir", str(tmp_path), *words]
        assert main(line) == 0
    first, second = capsys.readouterr().out.splitlines()
    if words:
        said = json.loads(second)
        assert said["message"] == "SET_VRING_NUM"
        assert said["payload"] == {"index": 1, "num": 256}
    else:
        assert first.endswith(".250 -- front-end (pid 7) connected")
        assert second.endswith(".250 -> SET_VRING_NUM index=1 num=256")


@pytest.mark.parametrize(
    ("argv", "restart"),
    [(["trace", "web"], "restart web"), (["reload"], "restart")],
    ids=["of a device", "of a file"],
)
def test_daemon_of_an_earlier_version_is_to_be_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], restart: str
) -> None:
    refusal = {"ok": False, "error": "no command 'conversation'; there are: status"}
    line = json.dumps(refusal).encode() + b"\n"
    socket = "web.control" if "web" in argv else "control"
    with ControlDaemon(tmp_path / socket, {}, line):
        assert main([*argv, "--run-dir", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "of an earlier version than this program" in said
    assert f"Replace it: vhostpci-host {restart} [H066]" in said


def test_missing_messages_and_another_daemon_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def entries(*numbers: int) -> list[dict[str, Any]]:
        return [{"number": n, "time": 0.0, "event": f"said {n}"} for n in numbers]

    answers = [
        {"pid": 1, "entries": entries(0, 1), "next": 2},
        {"pid": 1, "entries": [], "next": 2},
        {"pid": 1, "entries": entries(5), "next": 6},
        {"pid": 2, "entries": [], "next": 6},
        {"pid": 2, "entries": entries(0), "next": 1},
    ]

    def ask(_path: Path, request: dict[str, Any]) -> dict[str, Any]:
        if not answers:
            raise KeyboardInterrupt
        asked.append(request["since"])
        return answers.pop(0)

    asked: list[int] = []
    monkeypatch.setattr(control_client, "ask", ask)
    monkeypatch.setattr(trace, "PAUSE", 0)
    assert main(["trace", "web"]) == 0
    said = [line.partition("-- ")[2] for line in capsys.readouterr().out.splitlines()]
    assert said == [
        "said 0",
        "said 1",
        "3 messages are missing here",
        "said 5",
        "daemon (pid 2) goes on",
        "said 0",
    ]
    assert asked == [0, 2, 2, 6, 0]
