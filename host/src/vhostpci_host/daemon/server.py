# SPDX-License-Identifier: Apache-2.0
"""One device and its sockets: what comes in becomes calls of its `Device`.

The device never waits.  A peer that breaks its protocol is dropped with one line.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

from .. import sockets
from ..config.device import DeviceConfig, Mode
from ..device.device import Device
from ..fds import exhausted, no_descriptors
from ..interfaces import Plugger
from ..ivshmem.connection import SlaveConnection
from ..ivshmem.linger import Linger
from ..ivshmem.window_socket import WindowSocket
from ..memory.arena import Arena, make_directory
from ..memory.attach import Attached, WindowIds
from ..memory.regions import Store, WindowFile
from ..sockets import Listener
from ..vhost_user.connection import MasterConnection
from ..vhost_user.message import Message
from . import control
from .isolated_loop import GuardedLoop

log = logging.getLogger(__name__)


class Owner(Protocol):
    """The daemon, as one of its servers sees it."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that all run in."""
        ...

    @property
    def window_ids(self) -> WindowIds:
        """Where windows get their numbers."""
        ...

    @property
    def linger(self) -> Linger:
        """What keeps connections that outlive their device."""
        ...

    async def control(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer the lines of one control connection."""

    def plugger(self, config: DeviceConfig) -> Plugger | None:
        """Return who plugs into this device's slave VM; None if nobody is to."""
        ...

    def device_failed(self, name: str, error: Exception) -> None:
        """A device failed, and has been closed."""

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
        self.loop = GuardedLoop(owner.loop, self._fail, self._exhausted)
        self.plugger = owner.plugger(config)
        self._owner = owner
        self._config = config
        self._master: MasterConnection | None = None
        self._slave: SlaveConnection | None = None
        self._windows: dict[int, WindowSocket] = {}
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
        self._control = stack.enter_context(self._control_socket(config.control))
        stack.callback(self._hide_all)
        self.device = self._new_device(config)
        stack.callback(self.device.close)
        self._listen(config.ivshmem, self._new_slave, stack)
        if inherited is None:
            self._listen(config.vhost_user, self._new_master, stack)
        else:
            self._take_inherited(inherited, stack)

    def _new_device(self, config: DeviceConfig) -> Device:
        with contextlib.ExitStack() as undo:
            store = self._store(config)
            undo.callback(store.close)
            device = Device(config, store, self.loop, self, self.plugger)
            undo.pop_all()
        return device

    def _store(self, config: DeviceConfig) -> Store:
        if config.mode is Mode.ATTACH:
            return Attached(config, self._owner.window_ids)
        return Arena(config)

    @contextlib.contextmanager
    def _control_socket(self, path: Path) -> Iterator[socket.socket]:
        with sockets.listen(path, 0o600, None) as server:
            try:
                yield server
            finally:
                path.unlink(missing_ok=True)

    def _listen(
        self,
        path: Path,
        take: Callable[[socket.socket], None],
        stack: contextlib.ExitStack | None = None,
    ) -> Listener:
        """Call `take` with each connection to the socket that we make at `path`."""
        server = sockets.listen(path, self._config.access, self._config.group)
        listener = Listener(server, self.loop, take, self.say_once, path)
        if stack is not None:
            stack.callback(listener.close)
        return listener

    def _take_inherited(
        self, inherited: socket.socket, stack: contextlib.ExitStack
    ) -> None:
        """Serve the socket that we were given, or the one connection that it is."""
        if sockets.is_listening(inherited):
            listener = Listener(inherited, self.loop, self._new_master, self.say_once)
            stack.callback(listener.close)
        else:
            self._alone = True
            self._new_master(inherited)

    # The windows (a `WindowHost`).

    def show(self, number: int, window: WindowFile) -> None:
        """Show a window to whoever connects for it.

        Raises:
            HostError: there cannot be a socket for it.
        """
        path = self._config.window(number)
        self._windows[number] = WindowSocket(
            number,
            window,
            partial(self._listen, path),
            self.loop,
            self._owner.linger,
            self.say_once,
        )

    def hide(self, number: int) -> None:
        """Show it no longer."""
        self._windows.pop(number).close()

    def connected(self, number: int) -> bool:
        """Whether somebody has it."""
        window = self._windows.get(number)
        return window is not None and window.connected

    def _hide_all(self) -> None:
        for number in list(self._windows):
            self.hide(number)

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
            pid = sockets.peer_pid(connection)
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
        linger = self._owner.linger
        self._slave = SlaveConnection(self, connection, self.loop, linger)
        self._slave.start()
        try:
            self.device.slave_connected(self._slave)
        except OSError as error:
            if not exhausted(error):
                raise
            self._slave.give_up(no_descriptors(error))

    def _refuse_slave(self, connection: socket.socket) -> None:
        assert self._slave is not None, "refused for nobody"
        pid = sockets.peer_pid(connection)
        self._owner.linger.refuse(connection)
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

    def _exhausted(self, error: OSError) -> None:
        """No descriptors are left: whoever made us need one more has to go."""
        connection = self._master or self._slave
        if connection is not None:
            connection.drop(no_descriptors(error))

    def _fail(self, error: Exception) -> None:
        """An error of ours: there is no going on with half of a device."""
        log.error("%s: failed, and is closed", self._config.name, exc_info=error)
        try:
            self.close()
        except Exception as second:
            log.debug("%s: and again", self._config.name, exc_info=second)
        self._owner.device_failed(self._config.name, error)

    def close(self) -> None:
        """Close all, and remove what we made; an error stops none of it."""
        self._alone = False
        with self._stack as stack:
            stack.callback(self.loop.close)
            for connection in (self._slave, self._master):
                if connection is not None:
                    stack.callback(connection.close)
