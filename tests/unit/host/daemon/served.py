# SPDX-License-Identifier: Apache-2.0
"""One device's sockets without a daemon around it, and what connects to them."""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.frontend import Dropped
from tests.fakes.loop import ManualLoop
from tests.fakes.windows import MIB
from vhostpci_host.config.device import DeviceConfig, Mode
from vhostpci_host.daemon.common import Common
from vhostpci_host.daemon.daemon import TICK
from vhostpci_host.daemon.directories import Directories
from vhostpci_host.daemon.server import Server
from vhostpci_host.ivshmem.linger import Linger
from vhostpci_host.memory.attach import WindowIds
from vhostpci_shared import ivshmem
from vhostpci_shared import metadata as md
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request

READY = md.Agent(state=md.AgentState.READY)


class Served:
    """A device that is served, and the processes that connect to it."""

    def __init__(
        self,
        directory: Path,
        caplog: pytest.LogCaptureFixture,
        clock: Callable[[], int] = time.time_ns,
        memory: int = 16 * MIB,
        **options: Any,
    ) -> None:
        self.loop = loop = ManualLoop()
        self.failures: list[Exception] = []
        self.config = DeviceConfig(
            name="dev",
            mode=Mode.ARENA,
            memory=memory,
            run_dir=directory,
            memory_dir=directory,
            **options,
        )
        common = Common(
            loop,  # type: ignore[arg-type]
            WindowIds(256),
            Linger(loop),
            Directories(loop.time, clock),
            _control,
        )
        self.server = Server(
            common, self.config, failed=self.failures.append, ended=_not_alone
        )
        self._caplog = caplog
        self._common = common
        self.beats = 0
        self.clients: list[socket.socket] = []
        self.server.serve_control()
        self._tick()

    def _tick(self) -> None:
        self._timer = self.loop.call_later(TICK, self._tick)
        self.server.tick()

    def connect(self, path: Path) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.clients.append(client)
        client.setblocking(False)
        client.connect(os.fspath(path))
        return client

    def master(self) -> socket.socket:
        """Connect as a front-end does: introduce it, and ask the first question."""
        client = self.connect(self.config.vhost_user)
        client.send(vu.message(Request.SET_OWNER) + vu.message(Request.GET_FEATURES))
        self.loop.advance()
        return client

    def slave(self) -> socket.socket:
        """Connect as a slave's QEMU does."""
        client = self.connect(self.config.ivshmem)
        self.loop.advance()
        return client

    def said(self, text: str) -> int:
        """Return how many lines of the log have `text`."""
        return sum(text in record.getMessage() for record in self._caplog.records)

    def close(self) -> None:
        self._timer.cancel()
        self.server.close()
        self._common.linger.close()
        for client in self.clients:
            client.close()
        assert not self.failures
        assert not self.loop.watched()


def _control(connection: socket.socket) -> None:
    """Answer like a control socket, but at once and whatever is asked."""
    with connection:
        connection.send(b"answer")


def _not_alone() -> None:
    raise AssertionError("the device does not depend on one connection")


def answered(client: socket.socket) -> bool | None:
    """Whether there is an answer; None if it is open and unanswered."""
    try:
        return bool(client.recv(4096))
    except BlockingIOError:
        return None
    except ConnectionError:
        return False


class Through:
    """A front-end's transport to a device whose loop turns with each message."""

    def __init__(self, served: Served, ours: socket.socket | None = None) -> None:
        self._served = served
        self._socket = ours or served.connect(served.config.vhost_user)

    def send(self, data: bytes, fds: Sequence[int]) -> None:
        try:
            socket.send_fds(self._socket, [data], list(fds))
        except ConnectionError as error:
            raise Dropped(str(error)) from error
        self._served.loop.advance()

    def receive(self) -> bytes:
        if not (data := self._socket.recv(4096)):
            raise Dropped("the daemon closed the connection")
        return data

    def close(self) -> None:
        self._socket.close()


def agent_process(served: Served) -> socket.socket:
    """Connect as an agent does, which gives its socket a name."""
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    agent.setblocking(False)
    agent.bind("")
    agent.connect(os.fspath(served.config.ivshmem))
    served.clients.append(agent)
    served.loop.advance()
    return agent


def is_served(slave: socket.socket) -> bool:
    return ivshmem.decode(slave.recv(8)) == ivshmem.VERSION


def beat(served: Served, entry: md.Agent = READY) -> None:
    """Say something, as an agent that lives does twice a second."""
    metadata = served.server.device.store.metadata
    served.beats += 1
    metadata.write_agent(replace(entry, instance=1, heartbeat=served.beats))


def read_all(slave: socket.socket) -> None:
    """Read the handshake; descriptors that are not asked for are closed by Linux."""
    with contextlib.suppress(BlockingIOError):
        while slave.recv(4096):
            continue
