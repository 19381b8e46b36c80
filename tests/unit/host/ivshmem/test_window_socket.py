# SPDX-License-Identifier: Apache-2.0
"""A window's socket: who gets the window, who is refused, and what both are told."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.loop import ManualLoop
from vhostpci_host.fds import Fd
from vhostpci_host.ivshmem.linger import Linger
from vhostpci_host.ivshmem.window_socket import WindowSocket
from vhostpci_host.memory.regions import WindowFile
from vhostpci_shared import ivshmem

NUMBER = 300


class Door:
    """The socket of one window, and the slaves that connect to it."""

    def __init__(self, path: Path, size: int) -> None:
        self.loop = ManualLoop()
        self.linger = Linger(self.loop)
        self.said: list[str] = []
        self._path = path
        self._connected: Callable[[socket.socket], None] = self._listen_to_none
        self._clients: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        with Fd(os.memfd_create("memory")) as file:
            self.socket = WindowSocket(
                NUMBER,
                WindowFile(file, size, (0, 0, size)),
                path,
                self._listen,
                loop=self.loop,
                linger=self.linger,
                say_once=self.said.append,
            )

    def _listen_to_none(self, _: socket.socket) -> None:
        raise AssertionError("the window does not listen")

    def _listen(
        self, path: Path, connected: Callable[[socket.socket], None]
    ) -> socket.socket:
        self._connected = connected
        self._listener.bind(os.fspath(path))
        self._listener.listen()
        return self._listener

    def connect(self, *, process: bool) -> socket.socket:
        """Connect as a slave process does, or as a slave's QEMU."""
        client = socket.socket(socket.AF_UNIX)
        if process:
            client.bind("")  # the kernel chooses a name
        client.setblocking(False)
        client.connect(os.fspath(self._path))
        self._clients.append(client)
        ours, _ = self._listener.accept()
        ours.setblocking(False)
        self._connected(ours)
        return client

    def close(self) -> None:
        self.socket.close()
        self.linger.close()
        for client in self._clients:
            client.close()


def serve(path: Path, size: int) -> Iterator[Door]:
    door = Door(path / "window", size)
    yield door
    door.close()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    """A window of 4096 bytes."""
    yield from serve(tmp_path, 4096)


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Door]:
    """A window that can be no BAR, as its size is no power of two."""
    yield from serve(tmp_path, 4097)


def first_message(client: socket.socket) -> int:
    return ivshmem.decode(client.recv(8))


@pytest.mark.parametrize("process", [False, True])
def test_slave_gets_the_window(door: Door, *, process: bool) -> None:
    slave = door.connect(process=process)
    assert first_message(slave) == ivshmem.VERSION
    assert first_message(slave) == NUMBER
    assert door.socket.connected
    assert door.said == []


@pytest.mark.parametrize("process", [False, True])
def test_second_slave_is_refused_and_told_in_the_log_who_is_connected(
    door: Door, *, process: bool
) -> None:
    first = door.connect(process=process)
    assert first_message(first) == ivshmem.VERSION
    second = door.connect(process=process)
    assert first_message(second) == ivshmem.REFUSED
    pid = os.getpid()
    assert door.said == [
        f"window {NUMBER} refused to pid {pid}: pid {pid} is connected"
    ]
    door.loop.advance()
    assert first_message(first) == NUMBER


def test_slave_that_connects_again_is_not_refused_because_of_itself(
    door: Door,
) -> None:
    """The loop has not told the daemon yet that the first connection ended."""
    door.connect(process=True).close()
    assert first_message(door.connect(process=True)) == ivshmem.VERSION
    assert door.said == []


def test_window_that_is_no_bar_is_refused_to_a_qemu(odd: Door) -> None:
    """QEMU aborts on a BAR whose size is no power of two."""
    assert first_message(odd.connect(process=False)) == ivshmem.REFUSED
    (line,) = odd.said
    assert "its 4097 bytes are no power of two" in line
    assert not odd.socket.connected


def test_window_that_is_no_bar_is_given_to_a_process(odd: Door) -> None:
    assert first_message(odd.connect(process=True)) == ivshmem.VERSION


def test_only_the_process_that_is_named_is_disconnected(door: Door) -> None:
    door.connect(process=True)
    door.socket.disconnect(os.getpid() + 1)
    assert door.socket.connected
    door.socket.disconnect(os.getpid())
    assert not door.socket.connected
