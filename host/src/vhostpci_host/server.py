# SPDX-License-Identifier: Apache-2.0
"""One device and its sockets: what comes in becomes calls of its `Device`.

The device never waits.  A peer that breaks its protocol is dropped with one line.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from . import control, endpoint
from .arena import Arena, make_directory
from .config import DeviceConfig
from .connections import MasterConnection, SlaveConnection
from .device import Device
from .message import Message
from .peers import refusal
from .ports import Plugger

log = logging.getLogger(__name__)

ACCEPT_PAUSE = 1.0
"""Seconds to accept nothing when there are no descriptors left."""


class Owner(Protocol):
    """The daemon, as one of its servers sees it."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that all run in."""
        ...

    async def control(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer the lines of one control connection."""

    def plugger(self, config: DeviceConfig) -> Plugger | None:
        """Return who plugs into this device's slave VM; None if nobody is to."""
        ...

    def stop(self) -> None:
        """End the daemon."""


class Server:
    """One device and its sockets.

    Args:
        owner: the daemon that it is one of.
        config: the device's.
        inherited: a vhost-user socket that we were given, instead of one we make.

    Raises:
        HostError: a socket or the arena cannot be had.
    """

    def __init__(
        self,
        owner: Owner,
        config: DeviceConfig,
        inherited: socket.socket | None = None,
    ) -> None:
        self.loop = owner.loop
        self._owner = owner
        self._config = config
        self._master: MasterConnection | None = None
        self._slave: SlaveConnection | None = None
        self._said = ""
        self._alone = False
        with contextlib.ExitStack() as stack:
            self._open(config, inherited, stack)
            self._stack = stack.pop_all()

    def _open(
        self,
        config: DeviceConfig,
        inherited: socket.socket | None,
        stack: contextlib.ExitStack,
    ) -> None:
        """Make all that may fail; `stack` undoes it in the other direction."""
        make_directory(config.run_dir)
        self._control = stack.enter_context(self._listen(config.control, private=True))
        arena = Arena(config)
        self.device = Device(config, arena, self.loop)
        stack.callback(self.device.close)
        ivshmem = stack.enter_context(self._listen(config.ivshmem))
        self._accept_from(ivshmem, self._new_slave, stack)
        if inherited is None:
            master = stack.enter_context(self._listen(config.vhost_user))
            self._accept_from(master, self._new_master, stack)
        else:
            self._take_inherited(inherited, stack)

    @contextlib.contextmanager
    def _listen(self, path: Path, *, private: bool = False) -> Iterator[socket.socket]:
        mode, group = self._config.access, self._config.group
        if private:
            mode, group = 0o600, None
        with endpoint.listen(path, mode, group) as server:
            try:
                yield server
            finally:
                path.unlink(missing_ok=True)

    def _take_inherited(
        self, inherited: socket.socket, stack: contextlib.ExitStack
    ) -> None:
        """Serve the socket that we were given, or the one connection that it is."""
        if endpoint.is_listening(inherited):
            stack.enter_context(inherited)
            self._accept_from(inherited, self._new_master, stack)
        else:
            self._alone = True
            self._new_master(inherited)

    def _accept_from(
        self,
        server: socket.socket,
        take: Callable[[socket.socket], None],
        stack: contextlib.ExitStack,
    ) -> None:
        def ready() -> None:
            try:
                connection = endpoint.accept(server)
            except OSError as error:
                self._pause_accepting(server, ready, error)
                return
            if connection is not None:
                take(connection)

        self.loop.add_reader(server, ready)
        stack.callback(self.loop.remove_reader, server)

    def _pause_accepting(
        self, server: socket.socket, ready: Callable[[], None], error: OSError
    ) -> None:
        """Out of descriptors: the queue stays readable, so don't spin on it."""
        self.say_once(f"cannot accept a connection: {error.strerror}")
        self.loop.remove_reader(server)
        self.loop.call_later(ACCEPT_PAUSE, self._accept_again, server, ready)

    def _accept_again(self, server: socket.socket, ready: Callable[[], None]) -> None:
        if server.fileno() >= 0:
            self.loop.add_reader(server, ready)

    async def serve_control(self) -> None:
        """Answer on the control socket, for as long as the daemon lives."""
        server = await asyncio.start_unix_server(
            self._owner.control, sock=self._control, limit=control.MAX_LINE
        )
        self._stack.callback(server.close)

    def _new_master(self, connection: socket.socket) -> None:
        if self._master is not None and self._master.hung_up():
            self._master.close()
        if self._master is not None:
            # It may not stay in the queue: its QEMU would stand still, waiting.
            pid = endpoint.peer_pid(connection)
            connection.close()
            self.say_once(
                f"front-end (pid {pid}) refused: pid {self._master.pid} is connected"
            )
            return
        self._master = MasterConnection(self, connection, self.loop)
        self.device.master_connected(self._master)
        self._master.start()

    def _new_slave(self, connection: socket.socket) -> None:
        if self._slave is not None and self._slave.hung_up():
            self._slave.close()
        if self._slave is not None:
            self._refuse_slave(connection)
            return
        self._slave = SlaveConnection(self, connection, self.loop)
        self._slave.start()
        self.device.slave_connected(self._slave)

    def _refuse_slave(self, connection: socket.socket) -> None:
        assert self._slave is not None, "refused for nobody"
        pid = endpoint.peer_pid(connection)
        with connection, contextlib.suppress(EOFError):
            for outgoing in refusal():
                endpoint.send_outgoing(connection, outgoing)
        self.say_once(f"slave (pid {pid}) refused: pid {self._slave.pid} is connected")

    def receive(self, message: Message) -> None:
        """The front-end sent a message."""
        self.device.receive(message)

    def master_closed(self) -> None:
        """The front-end's connection is closed."""
        self._master = None
        self.device.master_gone()
        if self._alone:
            self._owner.stop()

    def slave_closed(self) -> None:
        """The slave's connection is closed."""
        self._slave = None
        self.device.slave_gone()

    def say_once(self, text: str) -> None:
        """Warn of a peer; one that tries again each second is warned of once."""
        level = logging.DEBUG if text == self._said else logging.WARNING
        self._said = text
        log.log(level, "%s: %s", self._config.name, text)

    def close(self) -> None:
        """Close all, and remove what we made."""
        self._alone = False
        for connection in (self._master, self._slave):
            if connection is not None:
                connection.close()
        self._stack.close()
