# SPDX-License-Identifier: Apache-2.0
"""The control sockets' protocol: each line has an answer."""

import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import TIMEOUT, until
from vhostpci_host.daemon import control
from vhostpci_host.daemon.control import Commands, Control, Followed, Request
from vhostpci_host.daemon.listeners import PathListener, Place
from vhostpci_host.errors import HostError


async def echo(request: Request) -> Any:
    return request["what"]


async def refuse(request: Request) -> Any:
    raise HostError("not now", code="H999")


COMMANDS: Commands = {"echo": echo, "refuse": refuse}


def ask(line: bytes) -> dict[str, Any]:
    """Return the answer to a line."""
    answer = asyncio.run(control.answer(COMMANDS, line))
    assert answer.endswith(b"\n")
    decoded: dict[str, Any] = json.loads(answer)
    return decoded


def test_command_has_a_result_or_an_error() -> None:
    assert ask(b'{"command": "echo", "what": [1]}') == {"ok": True, "result": [1]}
    assert ask(b'{"command": "refuse"}') == {
        "ok": False,
        "error": "not now",
        "code": "H999",
    }


def test_unknown_command_is_answered_with_the_known_ones() -> None:
    error = "no command 'dance'; there are: echo, refuse"
    said = ask(b'{"command": "dance"}')
    assert said == {"ok": False, "error": error, "code": "H056"}


@pytest.mark.parametrize(
    "line", [b"[" * 60000, b"[]", b"3", b'{"command": ["a"]}', b'{"command": {}}']
)
def test_line_that_is_no_request_is_no_bug_of_ours(
    line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert "an error in the daemon" not in ask(line)["error"]
    assert caplog.text == ""


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


def test_connection_whose_line_is_too_long_is_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = b"x" * (2 * control.MAX_LINE + 1)
    # An end with bytes that were not read is a reset.
    with contextlib.suppress(ConnectionError):
        assert asyncio.run(conversation(tmp_path / "control", line)) == b""
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


def test_connection_that_reads_no_answer_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """More answers than the socket and both ends' buffers take."""
    monkeypatch.setattr(control, "LINE_TIMEOUT", 0.05)
    what = "x" * 60000
    line = json.dumps({"command": "echo", "what": what}).encode() + b"\n"

    async def scenario() -> None:
        ours, said = Control(), caplog.records
        with serving(tmp_path / "control", ours):
            _, writer = await asyncio.open_unix_connection(tmp_path / "control")
            writer.write(100 * line)
            await until(lambda: ours._callers)
            await until(lambda: not ours._callers)
            writer.transport.abort()
        assert [r for r in said if r.levelno >= logging.ERROR] == []

    asyncio.run(scenario())


class Endless:
    """A stream that always has lines."""

    def __init__(self) -> None:
        self.closed = False

    async def take(self) -> bytes:
        return 60000 * b"x"

    def close(self) -> None:
        self.closed = True


def test_stream_that_nothing_reads_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Endless()

    async def follow(request: Request) -> Any:
        # Not before: the request itself must come in that time.
        monkeypatch.setattr(control, "LINE_TIMEOUT", 0.05)
        return Followed(None, stream)

    async def scenario() -> None:
        with serving(tmp_path / "control", Control(), {"follow": follow}):
            _, writer = await asyncio.open_unix_connection(tmp_path / "control")
            writer.write(b'{"command": "follow"}\n')
            await until(lambda: stream.closed)
            writer.transport.abort()

    asyncio.run(scenario())


def test_connection_has_an_answer_for_each_line(tmp_path: Path) -> None:
    lines = b'{"command": "echo", "what": 1}\n{"command": "echo", "what": 2}\n'
    answers = asyncio.run(conversation(tmp_path / "control", lines, end=True))
    assert [json.loads(line)["result"] for line in answers.splitlines()] == [1, 2]


@contextlib.contextmanager
def serving(path: Path, ours: Control, commands: Commands = COMMANDS) -> Iterator[None]:
    """Serve a control socket at `path`."""
    place, take = Place(path, 0o600, None), partial(ours.take, commands)
    listener = PathListener(place, asyncio.get_running_loop(), take, print)
    try:
        yield
    finally:
        listener.close()


async def conversation(path: Path, said: bytes, *, end: bool = False) -> bytes:
    """Send `said` to a control socket; return all answers until it is closed."""
    ours = Control()
    with serving(path, ours):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(said)
        if end:
            writer.write_eof()
        got = await asyncio.wait_for(reader.read(), 5.0)
        writer.close()
        await writer.wait_closed()
        return got


async def flood(path: Path, idle: int, said: bytes) -> bytes:
    """Ask while one other program holds `idle` connections; return the answer."""
    ours = Control()
    with serving(path, ours):
        holder = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", HOLD, str(path), str(idle)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert holder.stdout is not None
        await holder.stdout.readline()
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(said)
        got = await asyncio.wait_for(reader.readline(), TIMEOUT)
        callers = len(ours._callers)
        writer.close()
        holder.kill()
        await holder.wait()
    assert callers == control.MAX_CONNECTIONS
    return got


HOLD = """
import socket, sys
held = [socket.socket(socket.AF_UNIX) for _ in range(int(sys.argv[2]))]
for one in held:
    one.connect(sys.argv[1])
print("all are connected", flush=True)
sys.stdin.read()
"""


def test_each_turn_of_the_loop_answers_one_line(tmp_path: Path) -> None:
    """A long line takes a millisecond, and devices wait meanwhile."""
    turns, answered = 0, []

    async def note(_: Request) -> None:
        answered.append(turns)

    async def scenario() -> None:
        def count() -> None:
            nonlocal turns
            turns += 1
            loop.call_soon(count)

        loop, ours = asyncio.get_running_loop(), Control()
        with serving(tmp_path / "control", ours, {"note": note}):
            count()
            asked = [await asyncio.open_unix_connection(path) for _ in range(9)]
            for _, writer in asked:
                writer.write(2 * b'{"command": "note"}\n')
            for reader, writer in asked:
                assert await reader.readline() == await reader.readline()
                writer.close()

    path = tmp_path / "control"
    asyncio.run(scenario())
    assert len(answered) == len(set(answered)) == 18


def test_idle_connections_of_one_program_keep_no_other_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a loaded machine the idle ones would be closed for their silence, too.
    monkeypatch.setattr(control, "LINE_TIMEOUT", 10 * TIMEOUT)
    line = b'{"command": "echo", "what": 1}\n'
    answer = asyncio.run(flood(tmp_path / "control", 500, line))
    assert json.loads(answer) == {"ok": True, "result": 1}


class Connection:
    """The end of a control connection that the daemon can hang up on."""

    def __init__(self) -> None:
        self.transport = self
        self.ended = False

    def abort(self) -> None:
        self.ended = True


@pytest.mark.parametrize(
    ("pids", "busy", "ended"),
    [
        ([7, 8, 8, 9], (), 1),
        ([8, 8, 8, 7], (0,), 1),
        ([7, 8, 8, 9], (1, 2), 0),
    ],
    ids=[
        "the oldest of the most",
        "not the one that is busy",
        "the oldest that is not",
    ],
)
def test_connection_that_ends_for_another_one(
    pids: list[int], busy: tuple[int, ...], ended: int
) -> None:
    ours = Control()
    connections = [Connection() for _ in pids]
    for index, pid in enumerate(pids):
        caller = control._Caller(pid, connections[index], index in busy)  # type: ignore[arg-type]
        ours._callers.append(caller)
    ours._hang_up_on_one()
    assert [one.ended for one in connections].index(True) == ended
    assert sum(one.ended for one in connections) == 1
    assert len(ours._callers) == len(pids) - 1
