# SPDX-License-Identifier: Apache-2.0
"""A device that connects to a front-end which listens, instead of listening for one."""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.descriptors import open_descriptors
from tests.fakes.loop import ManualLoop
from vhostpci_host import sockets
from vhostpci_host.daemon.connector import QUIET, Connector


@dataclass(frozen=True, slots=True)
class Taken:
    """A front-end that the connector has handed over."""

    connection: socket.socket
    pid: int


class Scene:
    """A connector, and the path where its front-end is to listen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop = ManualLoop()
        self.taken: list[Taken] = []
        self.said: list[str] = []
        self.connector = Connector(path, self.loop, self._take, self.said.append)
        self._servers: list[socket.socket] = []

    def _take(self, connection: socket.socket, pid: int) -> None:
        self.taken.append(Taken(connection, pid))

    def listen(self, backlog: int = 1) -> socket.socket:
        """Listen as a front-end does."""
        server = socket.socket(socket.AF_UNIX)
        server.bind(os.fspath(self.path))
        server.listen(backlog)
        self._servers.append(server)
        return server

    def check(self) -> None:
        self.connector.check()
        self.loop.advance()

    def close(self) -> None:
        self.connector.close()
        assert self.loop.watched() == set()
        for one in (*self._servers, *(taken.connection for taken in self.taken)):
            one.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path / "socket")
    yield scene
    scene.close()


def test_front_end_that_speaks_is_handed_over_with_its_process(scene: Scene) -> None:
    with scene.listen() as server:
        scene.check()
        assert scene.taken == []
        theirs, _ = server.accept()
        theirs.send(b"first words")
        scene.loop.advance()
    with theirs:
        (taken,) = scene.taken
        assert taken.pid == os.getpid()
        # Nothing of it has been read, and no credentials come with it.
        data, ancillary, *_ = taken.connection.recvmsg(64, 64)
        assert (data, ancillary) == (b"first words", [])
    assert (scene.connector.problem, scene.said) == ("", [])


def test_process_is_the_one_that_speaks_and_not_the_one_that_listened(
    scene: Scene,
) -> None:
    """As with libvirt, which makes the socket and gives it to QEMU."""
    with scene.listen() as server:
        scene.check()
        child = os.fork()
        if child == 0:
            theirs, _ = server.accept()
            theirs.send(b"x")
            os._exit(0)
        os.waitpid(child, 0)
        scene.loop.advance()
    assert [taken.pid for taken in scene.taken] == [child]


def test_descriptors_of_the_first_message_are_neither_lost_nor_leaked(
    scene: Scene,
) -> None:
    with scene.listen() as server:
        scene.check()
        theirs, _ = server.accept()
        with theirs:
            socket.send_fds(theirs, [b"x"], [theirs.fileno()])
            before = open_descriptors()
            scene.loop.advance()
            assert open_descriptors() == before
            (taken,) = scene.taken
            _, fds, *_ = socket.recv_fds(taken.connection, 1, 2)
            assert len(fds) == 1
            os.close(fds[0])


def test_front_end_that_is_not_there_yet_is_waited_for_in_silence(
    scene: Scene,
) -> None:
    scene.check()
    assert "is not there yet" in scene.connector.problem
    scene.listen().close()
    scene.check()
    assert "has no listener yet" in scene.connector.problem
    assert scene.said == []
    scene.path.unlink()
    with scene.listen() as server:
        scene.check()
        theirs, _ = server.accept()
        with theirs:
            theirs.send(b"x")
            scene.loop.advance()
    assert len(scene.taken) == 1
    assert scene.connector.problem == ""


def test_front_end_that_may_not_be_reached_is_complained_of(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sockets, "connect", refuse)
    scene.check()
    assert scene.said == [
        f"cannot connect to the front-end at {scene.path}: Permission denied"
    ]


def test_front_end_whose_queue_is_full_is_tried_again(scene: Scene) -> None:
    with scene.listen(backlog=0) as server:
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(os.fspath(scene.path))
            scene.check()
            assert "too many back-ends wait" in scene.connector.problem
            server.accept()[0].close()
        scene.check()
        theirs, _ = server.accept()
        with theirs:
            theirs.send(b"x")
            scene.loop.advance()
    assert len(scene.taken) == 1


def test_front_end_that_says_nothing_is_complained_of_and_kept(scene: Scene) -> None:
    with scene.listen() as server:
        scene.check()
        scene.loop.advance(QUIET)
        scene.check()
        assert "says nothing" in scene.connector.problem
        # The same connection: it keeps its place in the front-end's queue.
        theirs, _ = server.accept()
        with theirs:
            theirs.send(b"x")
            scene.loop.advance()
    assert len(scene.taken) == 1
    assert scene.connector.problem == ""


def test_front_end_that_closes_the_connection_at_once_is_tried_again(
    scene: Scene,
) -> None:
    with scene.listen() as server:
        for _ in range(2):
            scene.check()
            server.accept()[0].close()
            scene.loop.advance()
            assert "closed the connection at once" in scene.connector.problem
    assert scene.taken == []
