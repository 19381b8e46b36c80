# SPDX-License-Identifier: Apache-2.0
"""One connection to a QEMU's monitor, which may hang, refuse or end at any time.

`qemu.qmp` speaks the protocol.  What it leaves open is settled here: each wait has an
end, whatever goes wrong closes the connection, and the connection is closed by
shutting its socket down, which no peer can hinder.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from qemu.qmp import ExecuteError, QMPClient, QMPError, Runstate
from qemu.qmp.message import Message

from .vm import PlugError, VmAway

GREETING_TIME = 5.0
"""Seconds that a QEMU has to say that it is one."""
COMMAND_TIME = 10.0
"""Seconds that it has for a command."""

_UNPLUG_ENDS = ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR")
_CLOSED = (QMPError, OSError, EOFError)
"""What a connection that has ended raises."""

# The library tells each failed try at error level; we tell it once, and better.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class Refused(PlugError):
    """QEMU refused a command; `reason` is its own text."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


class Monitor:
    """A connection past its greeting."""

    def __init__(self, path: Path, connection: socket.socket) -> None:
        self._path, self._connection = path, connection
        self._client = QMPClient()
        self._client.events.event_filter = self._hear  # and so it keeps none
        self._awaited: dict[str, asyncio.Future[bool]] = {}
        self._ended: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Connect.

        Raises:
            VmAway: there is no QEMU, or none that answers us.
        """
        monitor = cls(path, _connect(path))
        await monitor._greet()
        return monitor

    async def _greet(self) -> None:
        try:
            async with asyncio.timeout(GREETING_TIME):
                await self._client.connect(self._connection)
        except asyncio.CancelledError:
            self._connection.close()
            raise
        except TimeoutError:
            raise VmAway(
                f"the QMP socket {self._path} has not answered in {GREETING_TIME:g} s: "
                "it serves one client at a time, so give this daemon one of its own "
                "(-qmp unix:PATH,server=on,wait=off); else its QEMU hangs"
            ) from None
        except QMPError as error:
            raise VmAway(
                f"the QMP socket {self._path} does not answer as one: {error}"
            ) from error
        self._ended = asyncio.create_task(self._wait_end())

    @property
    def closed(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._client.runstate is not Runstate.RUNNING

    async def wait_closed(self) -> None:
        """Wait until it is closed by whichever side."""
        assert self._ended is not None, "never opened"
        await asyncio.shield(self._ended)

    async def close(self) -> None:
        """Close it; a second time does nothing."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        await self.wait_closed()

    async def _wait_end(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        with contextlib.suppress(Exception):  # the reason is of no use any more
            await self._client.disconnect()
        for awaited in self._awaited.values():
            if not awaited.done():
                awaited.set_exception(self._gone())

    def _gone(self) -> VmAway:
        return VmAway(f"the slave VM at {self._path} has ended, or closed its monitor")

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Execute a command; return what QEMU returns.

        Raises:
            Refused: QEMU refused it.
            VmAway: it did not answer, and the connection is closed.
        """
        try:
            async with asyncio.timeout(COMMAND_TIME):
                return await self._client.execute(command, arguments or None)
        except TimeoutError:
            await self.close()
            raise VmAway(
                f"the slave VM at {self._path} has not answered {command} in "
                f"{COMMAND_TIME:g} s: its QEMU hangs, or is stopped"
            ) from None
        except ExecuteError as error:
            raise Refused(
                f"the slave VM at {self._path} refuses {command}: {error}", str(error)
            ) from error
        except _CLOSED as error:
            await self.close()
            raise self._gone() from error

    async def hand_over(self, name: str, descriptor: socket.socket) -> None:
        """Give QEMU a descriptor, under a name; one at a time.

        Raises:
            PlugError: as `execute`.
        """
        try:
            socket.send_fds(self._connection, [b" "], [descriptor.fileno()])
        except OSError as error:
            await self.close()
            raise self._gone() from error
        await self.execute("getfd", fdname=name)

    @contextlib.contextmanager
    def unplugged(self, identifier: str) -> Iterator[asyncio.Future[bool]]:
        """Yield what will be True when that device is deleted, False if refused."""
        awaited = asyncio.get_running_loop().create_future()
        self._awaited[identifier] = awaited
        try:
            yield awaited
        finally:
            del self._awaited[identifier]
            awaited.cancel()

    def _hear(self, event: Message) -> bool:
        """An event came; return whether it is to be kept."""
        kind, data = event["event"], event.get("data")
        if kind not in _UNPLUG_ENDS or not isinstance(data, dict):
            return False
        awaited = self._awaited.get(data.get("device", ""))
        if awaited is not None and not awaited.done():
            awaited.set_result(kind == "DEVICE_DELETED")
        return False


def _connect(path: Path) -> socket.socket:
    """Connect without waiting: a Unix socket does so at once or not at all.

    asyncio's own takes a full queue (EAGAIN) for a connection under way.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise VmAway(f"waiting for the slave VM at {path}: {_mend(error)}") from error
    return connection


def _mend(error: OSError) -> str:
    match error:
        case FileNotFoundError() | ConnectionRefusedError():
            return "start its QEMU with -qmp unix:PATH,server=on,wait=off"
        case PermissionError():
            return "we may not connect: give our user the right to write to it"
        case BlockingIOError():
            return "others wait there already; give this daemon a socket of its own"
    return f"{error.strerror}"
