# SPDX-License-Identifier: Apache-2.0
"""Answer commands on control sockets: one JSON object per line, one answer line each.

    {"command": "status"}      {"ok": true, "result": {...}}
    {"command": "dance"}       {"ok": false, "error": "no command 'dance'; ..."}

The control socket of a device accepts `status`, and `conversation` with the number of
an entry, from which on it wants to know what was said:

    {"command": "conversation", "name": "web", "since": 0}

A daemon with many devices has one more control socket, which also accepts:

    {"command": "list"}
    {"command": "add", "name": "web", "options": {"memory": "1G", "queue-pairs": "4"}}
    {"command": "remove", "name": "web"}
    {"command": "reload"}

The options have the names of the command line's.  Each value is a string, and each
path is absolute, since the daemon may have another working directory.
"""

import asyncio
import contextlib
import json
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .. import sockets
from ..config import options
from ..errors import HostError

log = logging.getLogger(__name__)

MAX_LINE = 65536
MAX_CONNECTIONS = 64
"""The most connections to all control sockets of a daemon at one time."""
LINE_TIMEOUT = 10.0
"""Seconds within which the other end must send a line, or read an answer."""

Request = Mapping[str, Any]
Commands = Mapping[str, Callable[[Request], Awaitable[Any]]]


@dataclass(eq=False, slots=True)
class _Caller:
    """One connection."""

    pid: int
    writer: asyncio.StreamWriter
    busy: bool = False
    """Whether one of its commands is being executed."""


class Control:
    """Serves control connections, at most MAX_CONNECTIONS at one time.

    When there are more, the program that has the most connections loses the one that
    has been idle for longest, so that it cannot keep other programs out.  Each turn of
    the loop answers one line, however many there are: a long line, or one about many
    devices, takes a millisecond.
    """

    def __init__(self) -> None:
        self._callers: list[_Caller] = []
        # asyncio itself keeps only a weak reference to a task.
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    def take(self, commands: Commands, connection: socket.socket) -> None:
        """Answer the lines of one connection from now on, in a separate task."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._serve(commands, connection))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "a control connection failed", "exception": error}
            task.get_loop().call_exception_handler(context)

    async def _serve(self, commands: Commands, connection: socket.socket) -> None:
        """Answer the lines of one connection until it ends or a timeout passes."""
        with contextlib.ExitStack() as undo:
            undo.callback(connection.close)
            reader, writer = await asyncio.open_unix_connection(
                sock=connection, limit=MAX_LINE
            )
            undo.pop_all()  # the writer closes it from now on
        with contextlib.closing(writer):
            caller = _Caller(_pid(writer), writer)
            self._callers.append(caller)
            # Without a limit, connections could take the descriptors that the devices
            # need for their front-ends.
            if len(self._callers) > MAX_CONNECTIONS:
                self._hang_up_on_one()
            try:
                await self._converse(commands, reader, caller)
            # ValueError: readline() found no line end within the reader's limit.
            except (ConnectionError, TimeoutError, ValueError):
                log.debug("closed a control connection after an error", exc_info=True)
            finally:
                self._forget(caller)

    async def _converse(
        self, commands: Commands, reader: asyncio.StreamReader, caller: _Caller
    ) -> None:
        while line := await asyncio.wait_for(reader.readline(), LINE_TIMEOUT):
            caller.busy = True
            async with self._turn:
                await asyncio.sleep(0)  # until the next turn of the loop
            # One line at a time: a caller that does not read its answers stops at
            # drain() and cannot make us buffer more of them.
            caller.writer.write(await answer(commands, line))
            caller.busy = False
            await asyncio.wait_for(caller.writer.drain(), LINE_TIMEOUT)

    def _hang_up_on_one(self) -> None:
        """Close an idle connection of the program that has the most connections."""
        counts = Counter(caller.pid for caller in self._callers)
        idle = [caller for caller in self._callers if not caller.busy]
        # At least the newest one is idle.  max() returns the first, so the oldest, of
        # several with the same count.
        victim = max(idle, key=lambda caller: counts[caller.pid])
        self._forget(victim)
        victim.writer.transport.abort()

    def _forget(self, caller: _Caller) -> None:
        # Not twice: a connection that was hung up on still runs to its end.
        if caller in self._callers:
            self._callers.remove(caller)


def _pid(writer: asyncio.StreamWriter) -> int:
    return sockets.peer_pid(writer.get_extra_info("socket"))


async def answer(commands: Commands, line: bytes) -> bytes:
    """Return the answer to one line."""
    try:
        result = {"ok": True, "result": await _run(commands, line)}
    except HostError as error:
        result = {"ok": False, "error": str(error)}
    # A bug in one command must not end the daemon, which serves other devices.
    except Exception:
        log.exception("the control command %r failed in the daemon", line[:80])
        text = "an error in the daemon, whose log says more: please report it"
        result = {"ok": False, "error": text}
    return json.dumps(result).encode() + b"\n"


async def _run(commands: Commands, line: bytes) -> Any:
    try:
        request = json.loads(line)
    # RecursionError: json.loads() raises it for deeply nested brackets.
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise HostError("a request is a line with one JSON object")
    name = request.get("command")
    command = commands.get(name) if isinstance(name, str) else None
    if command is None:
        raise HostError(f"no command {name!r}; there are: {', '.join(commands)}")
    return await command(request)


def given_options(given: object) -> dict[str, str]:
    """Return the options of a request, checked.

    Raises:
        HostError: an option is no text, or is not one of a device.
    """
    if not isinstance(given, dict):
        raise HostError("options: write an object with texts")
    for name, text in given.items():
        if not isinstance(text, str):
            raise HostError(f"{name} {text!r}: write a text")
        if name == options.RUN_DIR.name:
            raise HostError(f"{name} is for the whole daemon, not for a device")
        option = options.OPTIONS.get(name)
        if option and option.is_path and not text.startswith("/"):
            raise HostError(f"{name} {text!r}: write an absolute path")
    return given
