# SPDX-License-Identifier: Apache-2.0
"""A listening socket while the daemon has no descriptors left for a connection."""

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.loop import ManualLoop
from vhostpci_host import sockets
from vhostpci_host.daemon.listeners import ACCEPT_PAUSE, Listener, PathListener, Place


class Waiting:
    """A listener that could not accept the connection which waits for it."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = ManualLoop()
        self.taken: list[socket.socket] = []
        self.said: list[str] = []
        server = socket.socket(socket.AF_UNIX)
        server.setblocking(False)
        server.bind(os.fspath(path))
        server.listen()
        self.listener = Listener(server, self.loop, self.taken.append, self.said.append)
        self._client = socket.socket(socket.AF_UNIX)
        self._client.connect(os.fspath(path))
        with monkeypatch.context() as patch:
            patch.setattr(sockets, "accept", self._fail)
            # The fake loop fails if it calls back again and again.
            self.loop.advance()

    def _fail(self, _: socket.socket) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    def close(self) -> None:
        self.listener.close()
        for one in (*self.taken, self._client):
            one.close()


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Waiting]:
    waiting = Waiting(tmp_path / "socket", monkeypatch)
    yield waiting
    waiting.close()


def test_connection_that_finds_no_descriptor_is_accepted_later(
    waiting: Waiting,
) -> None:
    assert len(waiting.said) == 1
    waiting.loop.advance(ACCEPT_PAUSE - 0.1)
    assert waiting.taken == []
    waiting.loop.advance(0.2)
    assert len(waiting.taken) == 1


def test_listener_that_is_closed_meanwhile_is_not_watched_again(
    waiting: Waiting,
) -> None:
    waiting.listener.close()
    waiting.loop.advance(2 * ACCEPT_PAUSE)
    assert waiting.loop.watched() == set()


def test_listener_whose_socket_cannot_be_removed_is_closed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its directory may have become read-only."""
    said: list[str] = []
    loop, path = ManualLoop(), tmp_path / "socket"
    listener = PathListener(
        Place(path, 0o600, None), loop, lambda connection: None, said.append
    )
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        listener.close()
    assert said == [
        f"cannot remove {path}: Read-only file system; the next daemon with this name "
        "replaces it"
    ]
    assert listener.server.fileno() == -1
    assert loop.watched() == set()


def refuse(path: Path, missing_ok: bool = False) -> None:
    raise OSError(errno.EROFS, "Read-only file system")
