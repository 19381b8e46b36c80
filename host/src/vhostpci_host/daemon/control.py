# SPDX-License-Identifier: Apache-2.0
"""The control sockets' protocol: one JSON object a line, and one for an answer.

    {"command": "status"}      {"ok": true, "result": {...}}
    {"command": "dance"}       {"ok": false, "error": "no command 'dance'; ..."}

Each device has a socket, which knows `status`.  A daemon with many devices has one
more, which also knows:

    {"command": "list"}
    {"command": "add", "name": "web", "options": {"memory": "1G", "queue-pairs": "4"}}
    {"command": "remove", "name": "web"}

Options are those of the command line, all of them texts, and paths absolute.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from ..errors import HostError

log = logging.getLogger(__name__)

MAX_LINE = 65536
MAX_CONNECTIONS = 64
"""Connections to all of a daemon's control sockets at once."""
PATIENCE = 10.0
"""Seconds for a line to come, or an answer to be read."""

Request = Mapping[str, Any]
Commands = Mapping[str, Callable[[Request], Awaitable[Any]]]


class Control:
    """Answers connections, as many at once as are good for us."""

    def __init__(self) -> None:
        self._connections = 0

    async def serve(
        self,
        commands: Commands,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Answer the lines of one connection, until it ends or is too slow."""
        with contextlib.closing(writer):
            if self._connections >= MAX_CONNECTIONS:
                return
            self._connections += 1
            try:
                await _converse(commands, reader, writer)
            except (ConnectionError, TimeoutError, ValueError):
                log.debug("a control connection broke", exc_info=True)
            finally:
                self._connections -= 1


async def _converse(
    commands: Commands, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    while line := await asyncio.wait_for(reader.readline(), PATIENCE):
        writer.write(await answer(commands, line))
        await asyncio.wait_for(writer.drain(), PATIENCE)


async def answer(commands: Commands, line: bytes) -> bytes:
    """Return the answer to one line."""
    try:
        result = {"ok": True, "result": await _run(commands, line)}
    except HostError as error:
        result = {"ok": False, "error": str(error)}
    except Exception:
        log.exception("a control command failed")
        text = "an error in the daemon, whose log says more: please report it"
        result = {"ok": False, "error": text}
    return json.dumps(result).encode() + b"\n"


async def _run(commands: Commands, line: bytes) -> Any:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise HostError("a request is a line with one JSON object")
    name = request.get("command")
    command = commands.get(name) if isinstance(name, str) else None
    if command is None:
        raise HostError(f"no command {name!r}; there are: {', '.join(commands)}")
    return await command(request)
