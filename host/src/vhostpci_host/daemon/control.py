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

Both accept `{"command": "monitor"}`, with the `name` of a device or without.  A line
for each event follows its answer, until the caller closes the connection.

The options have the names of the command line's.  Each value is a string, and each
path is absolute, since the daemon may have another working directory.
"""

import asyncio
import contextlib
import json
import logging
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .. import sockets
from ..config import options
from ..errors import HostError

log = logging.getLogger(__name__)

MAX_LINE = 65536
MAX_CONNECTIONS = 64
"""The most connections to all control sockets of a daemon at one time."""
LINE_TIMEOUT = 10.0
"""Seconds within which the other end must send a line, or read an answer."""
LAST_LINES = 0.5
"""Seconds that those who follow a stream have to read its end, when the daemon ends."""

Request = Mapping[str, Any]
Commands = Mapping[str, Callable[[Request], Awaitable[Any]]]


class Stream(Protocol):
    """A result after which lines follow, until the caller has enough."""

    async def take(self) -> bytes:
        """Wait for lines, and return them; none is the end of the stream.

        Raises:
            ConnectionError: the caller does not read.
        """
        ...

    def close(self) -> None:
        """Stop making lines: the caller is gone."""


@dataclass(frozen=True, slots=True)
class Followed:
    """What a command returns if a stream follows its answer."""

    result: Any
    stream: Stream


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
        self._following: dict[asyncio.Future[None], _Caller] = {}
        """Those who are sent streams; each future is done at the end of one."""
        self._turn = asyncio.Lock()

    def take(self, commands: Commands, connection: socket.socket) -> None:
        """Answer the lines of one connection from now on, in a separate task."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._serve(commands, connection))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def end_streams(self) -> None:
        """Wait until the streams, which are over, are sent; LAST_LINES at most.

        Else the end of the loop would come before their last lines are written.
        """
        if self._following:
            await asyncio.wait(self._following, timeout=LAST_LINES)
        for caller in self._following.values():
            caller.writer.transport.abort()

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
                # A caller that does not read would keep what is not sent yet.
                writer.transport.abort()
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
            text, stream = await _respond(commands, line)
            caller.writer.write(text)
            caller.busy = False
            if stream is not None:
                with contextlib.closing(stream), self._followed(caller):
                    await self._stream(stream, reader, caller)
                return
            await asyncio.wait_for(caller.writer.drain(), LINE_TIMEOUT)

    async def _stream(
        self, stream: Stream, reader: asyncio.StreamReader, caller: _Caller
    ) -> None:
        """Send what a stream makes until it is over.

        The caller may end it, by any byte or by none.

        Raises:
            ConnectionError, TimeoutError: the caller does not read.
        """
        ends = asyncio.ensure_future(reader.read(1))
        try:
            while not ends.done():
                lines = asyncio.ensure_future(stream.take())
                try:
                    await asyncio.wait(
                        (ends, lines), return_when=asyncio.FIRST_COMPLETED
                    )
                    if lines.done():
                        if not lines.result():
                            break
                        caller.writer.write(lines.result())
                        await asyncio.wait_for(caller.writer.drain(), LINE_TIMEOUT)
                finally:
                    lines.cancel()
        finally:
            ends.cancel()
        caller.writer.close()
        await asyncio.wait_for(caller.writer.wait_closed(), LINE_TIMEOUT)

    @contextlib.contextmanager
    def _followed(self, caller: _Caller) -> Iterator[None]:
        """Have `end_streams` wait for the end of this block."""
        end = asyncio.get_running_loop().create_future()
        self._following[end] = caller
        try:
            yield
        finally:
            del self._following[end]
            end.set_result(None)

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
    text, stream = await _respond(commands, line)
    if stream is not None:
        stream.close()
    return text


async def _respond(commands: Commands, line: bytes) -> tuple[bytes, Stream | None]:
    """Return the answer to one line, and what follows it."""
    stream = None
    try:
        found = await _run(commands, line)
        if isinstance(found, Followed):
            found, stream = found.result, found.stream
        result = {"ok": True, "result": found}
    except HostError as error:
        result = {"ok": False, "error": str(error), "code": error.code}
    # A bug in one command must not end the daemon, which serves other devices.
    except Exception:
        log.exception("the control command %r failed in the daemon", line[:80])
        bug = HostError(
            "an error in the daemon, whose log says more: please report it", code="H054"
        )
        result = {"ok": False, "error": str(bug), "code": bug.code}
    return json.dumps(result).encode() + b"\n", stream


async def _run(commands: Commands, line: bytes) -> Any:
    try:
        request = json.loads(line)
    # RecursionError: json.loads() raises it for deeply nested brackets.
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise HostError("a request is a line with one JSON object", code="H055")
    name = request.get("command")
    command = commands.get(name) if isinstance(name, str) else None
    if command is None:
        raise HostError(
            f"no command {name!r}; there are: {', '.join(commands)}", code="H056"
        )
    return await command(request)


def given_options(given: object) -> dict[str, str]:
    """Return the options of a request, checked.

    Raises:
        HostError: an option is no text, or is not one of a device.
    """
    if not isinstance(given, dict):
        raise HostError("options: write an object with texts", code="H057")
    for name, text in given.items():
        if not isinstance(text, str):
            raise HostError(f"{name} {text!r}: write a text", code="H058")
        if name == options.RUN_DIR.name:
            raise HostError(
                f"{name} is for the whole daemon, not for a device", code="H059"
            )
        option = options.OPTIONS.get(name)
        if option and option.is_path and not text.startswith("/"):
            raise HostError(f"{name} {text!r}: write an absolute path", code="H060")
    return given
