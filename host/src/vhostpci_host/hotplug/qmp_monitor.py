# SPDX-License-Identifier: Apache-2.0
"""One connection to a QEMU's monitor, which may hang, refuse or end at any time.

The library `qemu.qmp` speaks the protocol.  This file adds a time limit to each wait,
and closes the connection after any failure but a refusal: a new one starts from a known
state.
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

from vhostpci_shared.limits import reason

from .vm import PlugError, VmAway

GREETING_TIME = 5.0
"""Seconds that a QEMU has to say that it is one."""
COMMAND_TIME = 10.0
"""Seconds that it has for a command."""

# A guest's refusal has an event since QEMU 6.2, and not with every hot-plug controller:
# without one, only the caller's time limit ends the wait.
_UNPLUG_ENDS = ("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR")
_CLOSED = (QMPError, OSError, EOFError)
"""What a connection that has ended raises."""

# The library logs every failed attempt to connect at error level.  The reconciler
# warns once, and says what to do.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class Refused(PlugError):
    """QEMU refused a command; `reason` is its own text."""

    def __init__(self, text: str, reason: str, *, code: str = "") -> None:
        super().__init__(text, code=code)
        self.reason = reason


class Monitor:
    """A connection past its greeting."""

    def __init__(self, path: Path, connection: socket.socket) -> None:
        self._path, self._connection = path, connection
        self._client = QMPClient()
        # The filter sees every event and keeps none: nothing reads the library's
        # queue, which would grow without end.
        self._client.events.event_filter = self._on_event
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
            # `close` cannot do it: it waits for `_ended`, which does not exist yet.
            self._connection.close()
            raise
        except TimeoutError:
            raise VmAway(
                f"the QMP socket {self._path} has not answered in {GREETING_TIME:g} s: "
                "it serves one client at a time, so give this daemon its own "
                "(-qmp unix:PATH,server=on,wait=off); else its QEMU hangs",
                code="H099",
            ) from None
        except QMPError as error:
            raise VmAway(
                f"the QMP socket {self._path} does not answer as one: {error}",
                code="H100",
            ) from error
        # A task from the start: it must notice the end of a VM that nothing asks.
        self._ended = asyncio.create_task(self._wait_end())

    @property
    def closed(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._client.runstate is not Runstate.RUNNING

    async def wait_closed(self) -> None:
        """Wait until either side has closed the connection."""
        assert self._ended is not None, "never opened"
        # Several devices wait; one that is cancelled must not cancel it for the others.
        await asyncio.shield(self._ended)

    async def close(self) -> None:
        """Close it; a second time does nothing."""
        # The library's disconnect() can wait for a QEMU that reads nothing; no peer
        # can hold up a shutdown of the socket.
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        await self.wait_closed()

    async def _wait_end(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()
        # disconnect() raises what ended the connection; those who wait get `_gone`.
        with contextlib.suppress(Exception):
            await self._client.disconnect()
        for awaited in self._awaited.values():
            if not awaited.done():
                awaited.set_exception(self._gone())

    def _gone(self) -> VmAway:
        return VmAway(
            f"the slave VM at {self._path} has ended, or closed its monitor",
            code="H101",
        )

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
            # QEMU executes the commands in order: the next one would hang behind this.
            await self.close()
            raise VmAway(
                f"the slave VM at {self._path} has not answered {command} in "
                f"{COMMAND_TIME:g} s: its QEMU hangs, or is stopped",
                code="H102",
            ) from None
        except ExecuteError as error:
            raise Refused(
                f"the slave VM at {self._path} refuses {command}: {error}",
                str(error),
                code="H103",
            ) from error
        except _CLOSED as error:
            await self.close()
            raise self._gone() from error

    async def hand_over(self, name: str, descriptor: socket.socket) -> None:
        """Give QEMU a descriptor, under a name; the caller hands over one at a time.

        Raises:
            PlugError: as `execute`.
        """
        # QEMU keeps the descriptors of the last message that had any, and `getfd` names
        # them.  JSON may have spaces between commands, so a space can carry one.
        try:
            socket.send_fds(self._connection, [b" "], [descriptor.fileno()])
        except OSError as error:
            await self.close()
            raise self._gone() from error
        await self.execute("getfd", fdname=name)

    @contextlib.contextmanager
    def unplugged(self, identifier: str) -> Iterator[asyncio.Future[bool]]:
        """Yield a future: True when the device is deleted, False if the guest refuses.

        Devices are told apart by their IDs; one ID is awaited once at a time.
        """
        awaited = asyncio.get_running_loop().create_future()
        self._awaited[identifier] = awaited
        try:
            yield awaited
        finally:
            del self._awaited[identifier]
            awaited.cancel()

    def _on_event(self, event: Message) -> bool:
        """Settle the future that waits for this event; tell the library to drop it."""
        kind, data = event["event"], event.get("data")
        if kind not in _UNPLUG_ENDS or not isinstance(data, dict):
            return False
        # The event of a device without an ID has no `device`.
        awaited = self._awaited.get(data.get("device", ""))
        if awaited is not None and not awaited.done():
            awaited.set_result(kind == "DEVICE_DELETED")
        return False


def _connect(path: Path) -> socket.socket:
    """Connect without waiting.

    Raises:
        VmAway: there is no socket, nothing listens on it, its queue is full, or we
            have no descriptor for the connection.
    """
    # A Unix socket connects at once or not at all.  asyncio's sock_connect() takes
    # EAGAIN, a full queue, for a connection under way, and would return success.
    # System calls: connect, sendmsg, shutdown, socket(AF_UNIX).
    with contextlib.ExitStack() as undo:
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            undo.callback(connection.close)
            connection.setblocking(False)
            connection.connect(str(path))
        except OSError as error:
            raise VmAway(
                f"waiting for the slave VM at {path}: {_advice(error)}", code="H104"
            ) from error
        undo.pop_all()
    return connection


def _advice(error: OSError) -> str:
    match error:
        case FileNotFoundError() | ConnectionRefusedError():
            return "start its QEMU with -qmp unix:PATH,server=on,wait=off"
        case PermissionError():
            return "the daemon may not connect: let its user write to the socket"
        case BlockingIOError():
            # Those that wait may be connections of ours, which we have given up.
            return (
                "its QEMU hangs, or other clients wait there; give this daemon a QMP "
                "socket for itself"
            )
    return reason(error)
