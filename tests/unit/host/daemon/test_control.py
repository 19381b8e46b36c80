# SPDX-License-Identifier: Apache-2.0
"""The control sockets' protocol: each line has an answer."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_host.daemon import control
from vhostpci_host.daemon.control import Control, Request
from vhostpci_host.errors import HostError


async def echo(request: Request) -> Any:
    return request["what"]


async def refuse(request: Request) -> Any:
    raise HostError("not now")


COMMANDS = {"echo": echo, "refuse": refuse}


def ask(line: bytes) -> dict[str, Any]:
    """Return the answer to a line."""
    answer = asyncio.run(control.answer(COMMANDS, line))
    assert answer.endswith(b"\n")
    decoded: dict[str, Any] = json.loads(answer)
    return decoded


def test_command_has_a_result_or_an_error() -> None:
    assert ask(b'{"command": "echo", "what": [1]}') == {"ok": True, "result": [1]}
    assert ask(b'{"command": "refuse"}') == {"ok": False, "error": "not now"}


def test_unknown_command_is_answered_with_the_known_ones() -> None:
    error = "no command 'dance'; there are: echo, refuse"
    assert ask(b'{"command": "dance"}') == {"ok": False, "error": error}


def test_bug_of_ours_is_an_answer_and_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert "whose log says more" in ask(b'{"command": "echo"}')["error"]
    assert "KeyError" in caplog.text


@given(st.binary() | st.text().map(str.encode))
def test_any_line_is_answered(line: bytes) -> None:
    assert ask(line)["ok"] is False


def test_connection_that_says_nothing_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "LINE_TIMEOUT", 0.05)
    assert asyncio.run(conversation(tmp_path / "control", b'{"half a li')) == b""


def test_connection_has_an_answer_for_each_line(tmp_path: Path) -> None:
    lines = b'{"command": "echo", "what": 1}\n{"command": "echo", "what": 2}\n'
    answers = asyncio.run(conversation(tmp_path / "control", lines, end=True))
    assert [json.loads(line)["result"] for line in answers.splitlines()] == [1, 2]


async def conversation(path: Path, said: bytes, *, end: bool = False) -> bytes:
    """Send `said` to a control socket; return all answers until it is closed."""
    ours = Control()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ours.serve(COMMANDS, reader, writer)

    async with await asyncio.start_unix_server(serve, path):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(said)
        if end:
            writer.write_eof()
        got = await asyncio.wait_for(reader.read(), 5.0)
        writer.close()
        await writer.wait_closed()
        return got
