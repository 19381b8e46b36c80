# SPDX-License-Identifier: Apache-2.0
"""The loop: the only file that waits.

`Daemon` has devices by name, each with a `Server`.  An error of ours ends it.
"""

import asyncio
import contextlib
import logging
import resource
import signal
import socket
from typing import Any

from . import control
from .attach import WindowIds
from .config import DeviceConfig
from .ports import Plugger
from .server import Server

log = logging.getLogger(__name__)


class Daemon:
    """The devices of this process, until it is told to end."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.window_ids = WindowIds()
        self._servers: dict[str, Server] = {}
        self._ended = self.loop.create_future()
        self.loop.set_exception_handler(self._failed)
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self.stop)

    async def add(
        self, config: DeviceConfig, inherited: socket.socket | None = None
    ) -> None:
        """Serve one more device.

        Raises:
            HostError: it cannot be served.
        """
        server = Server(self, config, inherited)
        self._servers[config.name] = server
        await server.serve_control()
        log.info(
            "%s: waiting for the master at %s and the slave at %s",
            config.name,
            config.vhost_user if inherited is None else "the inherited socket",
            config.ivshmem,
        )

    def plugger(self, config: DeviceConfig) -> Plugger | None:
        """Return who plugs into this device's slave VM; None if nobody is to."""
        return None

    async def ended(self) -> None:
        """Wait until a signal or an error of ours ends the daemon."""
        await self._ended

    def stop(self) -> None:
        """End the daemon."""
        if not self._ended.done():
            self._ended.set_result(None)

    def close(self) -> None:
        """Close all devices."""
        while self._servers:
            self._servers.popitem()[1].close()

    async def control(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Answer the lines of one control connection."""
        with (
            contextlib.closing(writer),
            contextlib.suppress(ConnectionError, ValueError),
        ):
            while line := await reader.readline():
                devices = {name: s.device for name, s in self._servers.items()}
                writer.write(control.answer(devices, line))
                await writer.drain()

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error of ours in a callback: end, rather than go on with half of it."""
        error = context.get("exception")
        if error is None or self._ended.done():
            loop.default_exception_handler(context)
        else:
            self._ended.set_exception(error)


async def run(config: DeviceConfig, inherited: socket.socket | None = None) -> None:
    """Serve one device until a signal comes.

    Raises:
        HostError: it cannot be served.
    """
    _raise_limit()
    daemon = Daemon()
    try:
        await daemon.add(config, inherited)
        await daemon.ended()
    finally:
        daemon.close()


def _raise_limit() -> None:
    """Have as many descriptors as we may: a ring takes five of them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
