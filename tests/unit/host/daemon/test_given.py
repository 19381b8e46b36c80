# SPDX-License-Identifier: Apache-2.0
"""Sockets that systemd has made for the daemon."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from vhostpci_host import sockets
from vhostpci_host.daemon.given import GivenSockets
from vhostpci_host.daemon.listeners import LeftSocket, PathListener, Place
from vhostpci_host.errors import HostError
from vhostpci_host.fds import Fd, identity

MODE = 0o660
OTHER = 61208
"""A user and a group that are not ours."""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "net0.vhost-user", MODE, None)


@pytest.fixture
def made(place: Place) -> Iterator[socket.socket]:
    """The socket as systemd makes it, which has it open all the time."""
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.fspath(place.path))
        place.path.chmod(0o600)
        made.listen()
        yield made


def given(*made: socket.socket) -> GivenSockets:
    """Return the sockets of a daemon that was given these."""
    return GivenSockets([Fd(os.dup(one.fileno())) for one in made])


def connect(path: Path) -> socket.socket:
    ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.settimeout(20)
    ours.connect(os.fspath(path))
    return ours


def is_hung_up(connection: socket.socket) -> bool:
    return connection.recv(1) == b""


def test_socket_is_found_by_its_path(place: Place, made: socket.socket) -> None:
    with closing(given(made)) as found:
        assert (
            found.prefer(None, Place(place.path.parent / "other", MODE, None)) is None
        )
        left = found.prefer(None, place)
        assert left is not None
        with left.server:
            assert identity(left.server) == identity(made)
            assert left.given
            assert left.inode == sockets.inode(place.path)
            # A look at where the path leads leaves no connection behind.
            assert sockets.accept(left.server) is None
        assert found.prefer(None, place) is None


def test_front_end_that_waits_is_not_hung_up_on(
    place: Place, made: socket.socket
) -> None:
    with connect(place.path) as master:
        left = given(made).prefer(None, place)
        assert left is not None
        with left.server:
            served = sockets.accept(left.server)
            assert served is not None
            with served:
                served.send(b"x")
                assert master.recv(1) == b"x"


def test_what_an_earlier_daemon_has_left_is_preferred(
    place: Place, made: socket.socket
) -> None:
    inode = sockets.inode(place.path)
    assert inode is not None
    for server, same in ((made.dup(), True), (socket.socket(socket.AF_UNIX), False)):
        with server:
            found = given(made).prefer(LeftSocket(server, inode), place)
            assert found == LeftSocket(server, inode, given=same)


def test_path_that_leads_elsewhere_is_not_taken(
    place: Place, made: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    """An earlier daemon has listened again where another process took the path."""
    with sockets.listen_again(place.path, MODE, None):
        assert given(made).prefer(None, place) is None
    place.path.unlink()
    assert given(made).prefer(None, place) is None
    assert caplog.text.count("its socket unit must be restarted") == 2


@pytest.mark.parametrize(
    ("mode", "owner", "group", "what"),
    [
        (0o666, -1, -1, "SocketMode=0660"),
        (0o670, -1, -1, "SocketMode=0660"),
        (0o600, OTHER, -1, "SocketUser="),
        (0o660, -1, OTHER, "SocketGroup="),
    ],
)
def test_socket_that_others_may_connect_to_is_refused(
    place: Place, made: socket.socket, mode: int, owner: int, group: int, what: str
) -> None:
    if os.geteuid() and (owner, group) != (-1, -1):
        pytest.skip("only root can give files away")
    place.path.chmod(mode)
    os.chown(place.path, owner, group)
    found = given(made)
    with pytest.raises(HostError, match=what):
        found.prefer(None, place)


def test_narrower_socket_is_taken(place: Place, made: socket.socket) -> None:
    """Then no user in its group may connect, so it may be any group."""
    if not os.geteuid():
        os.chown(place.path, -1, OTHER)
    left = given(made).prefer(None, place)
    assert left is not None
    left.server.close()


def test_what_is_no_listening_socket_with_a_path_is_not_taken(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connected,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as abstract,
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as inet,
        Fd(os.memfd_create("file")) as file,
    ):
        datagrams.bind(os.fspath(place.path))
        abstract.bind("")
        abstract.listen()
        found = given(connected, datagrams, abstract, inet)
        assert found.prefer(None, place) is None
        GivenSockets([file.copy()])
    assert caplog.text.count("no listening Unix stream socket") == 4
    assert caplog.text.count("that is no socket") == 1


def test_second_socket_of_a_path_is_closed(
    place: Place, made: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    given(made, made).close()
    assert "two sockets" in caplog.text


def test_socket_that_no_device_has_lets_no_front_end_wait(
    place: Place, made: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(place.path) as master:
        given(made).finish_start()
        assert is_hung_up(master)
    assert not place.path.exists()
    assert "no device that is served has this socket" in caplog.text


def test_socket_that_no_device_has_is_not_removed_for_another(
    place: Place, made: socket.socket
) -> None:
    with sockets.listen_again(place.path, MODE, None):
        given(made).finish_start()
        assert place.path.exists()


class NoLoop:
    """A loop that tells of nothing."""

    def add_reader(self, *_: object) -> None: ...

    def remove_reader(self, *_: object) -> None: ...


def test_closed_listener_lets_no_front_end_wait(
    place: Place, made: socket.socket
) -> None:
    """systemd goes on listening, so those that wait would do so without end."""
    left = given(made).prefer(None, place)
    listener = PathListener(place, NoLoop(), print, print, left=left)  # type: ignore[arg-type]
    with connect(place.path) as master:
        listener.close()
        assert is_hung_up(master)
    assert not place.path.exists()


def test_stolen_path_lets_no_front_end_wait(place: Place, made: socket.socket) -> None:
    left = given(made).prefer(None, place)
    listener = PathListener(place, NoLoop(), print, print, left=left)  # type: ignore[arg-type]
    with connect(place.path) as master:
        place.path.unlink()
        listener.check()
        assert is_hung_up(master)
    with connect(place.path):
        listener.close()
