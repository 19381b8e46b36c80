# SPDX-License-Identifier: Apache-2.0
"""How the agent and a back-end meet, with sockets of this process or of a helper."""

import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.fakes.listening import before_listen
from vhostpci_guest.dataplane.vhost_user.approach import RETRY, Connector, Listener
from vhostpci_guest.dataplane.vhost_user.place import Place
from vhostpci_guest.dataplane.vhost_user.sockets import (
    LISTEN,
    MODE,
    LocalSockets,
    RemoteSockets,
    Sockets,
    orders,
)
from vhostpci_guest.errors import Unusable
from vhostpci_guest.privileges.channel import Channel, serve


@pytest.fixture
def channel(tmp_path: Path) -> Iterator[Channel]:
    """A helper, which is a thread of the test."""
    local = LocalSockets(Place(f"{tmp_path}/{{name}}", listens=True))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    helper = threading.Thread(target=serve, args=(theirs, orders(local)))
    helper.start()
    channel = Channel(ours, "makes sockets")
    yield channel
    channel.close()
    helper.join()
    theirs.close()


@pytest.fixture(params=["local", "remote"])
def sockets(
    request: pytest.FixtureRequest, tmp_path: Path, channel: Channel
) -> Sockets:
    """What makes sockets: this process, or a helper."""
    if request.param == "remote":
        return RemoteSockets(channel)
    return LocalSockets(Place(f"{tmp_path}/{{name}}", listens=True))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the socket of the device `s` is."""
    return tmp_path / "s"


def listening(path: Path) -> socket.socket:
    """Return another process's socket."""
    other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    other.bind(os.fspath(path))
    other.listen(1)
    return other


def test_socket_is_for_user_and_group_and_goes_at_the_end(
    path: Path, sockets: Sockets
) -> None:
    listener = Listener(path, "s", sockets)
    assert stat.S_IMODE(path.stat().st_mode) == MODE
    assert listener.take() is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as back_end:
        back_end.connect(os.fspath(path))
        connection = listener.take()
        assert connection is not None
        assert not connection.getblocking()
        connection.close()
    listener.close()
    assert not path.exists()


def test_socket_that_a_killed_agent_has_left_is_replaced(
    path: Path, sockets: Sockets
) -> None:
    listening(path).close()
    Listener(path, "s", sockets).close()
    assert not path.exists()


def test_path_where_another_process_listens_is_refused(
    path: Path, sockets: Sockets
) -> None:
    with listening(path):
        with pytest.raises(Unusable, match="another process listens"):
            Listener(path, "s", sockets)
        assert path.exists()


def test_socket_that_does_not_listen_yet_is_not_taken_for_a_dead_one(
    path: Path, sockets: Sockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second agent looks at that moment."""
    other = LocalSockets(Place(f"{path.parent}/{{name}}", listens=True))
    before_listen(monkeypatch, lambda: other.remove("s"))
    listener = Listener(path, "s", sockets)
    assert path.exists()
    listener.close()


def test_process_that_is_too_busy_to_accept_keeps_its_socket(
    path: Path, sockets: Sockets
) -> None:
    with listening(path) as busy, ExitStack() as undo:
        busy.listen(0)
        with suppress(BlockingIOError):
            while True:
                waiting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                undo.callback(waiting.close)
                waiting.setblocking(False)
                waiting.connect(os.fspath(path))
        with pytest.raises(Unusable, match="another process listens"):
            Listener(path, "s", sockets)
        assert path.exists()


def test_file_that_is_no_socket_stays(path: Path, sockets: Sockets) -> None:
    path.write_text("mine")
    with pytest.raises(Unusable, match="is no socket"):
        Listener(path, "s", sockets)
    sockets.remove("s")
    assert path.read_text() == "mine"


def test_directory_is_made_if_its_parent_is_there(tmp_path: Path) -> None:
    for text in ("d/s", "a/b/s"):
        local = LocalSockets(Place(f"{tmp_path}/{text}", listens=True))
        if text == "d/s":
            local.listen("").close()
        else:
            with pytest.raises(Unusable, match="No such file or directory"):
                local.listen("")


def test_path_that_is_too_long_is_named(tmp_path: Path, sockets: Sockets) -> None:
    with pytest.raises(Unusable, match="at most 107 bytes"):
        sockets.listen("s" * 108)


@pytest.mark.parametrize("name", ["../s", "/s", ""])
def test_helper_takes_no_path_from_the_agent(channel: Channel, name: str) -> None:
    with pytest.raises(Unusable, match="cannot be a part of the path"):
        RemoteSockets(channel).listen(name)
    with pytest.raises(PermissionError, match="is no text"):
        channel.ask(LISTEN, 7)


def test_socket_that_another_process_took_is_said_once(
    path: Path, sockets: Sockets, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener(path, "s", sockets)
    path.unlink()
    with listening(path):
        listener.tick()
        listener.tick()
        assert listener.problem
        assert len(caplog.records) == 1
        listener.close()
        assert path.exists()


def test_back_end_that_listens_is_connected_to(path: Path, sockets: Sockets) -> None:
    connector = Connector(path, "s", sockets)
    assert connector.take() is None
    assert connector.problem == "No such file or directory"
    with listening(path):
        assert connector.take() is None  # not yet again
        for _ in range(RETRY):
            connector.tick()
        connection = connector.take()
        assert connection is not None
        assert not connection.getblocking()
        assert connector.problem == ""
        connection.close()


def test_end_of_the_helper_ends_no_close(
    path: Path, channel: Channel, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener(path, "s", RemoteSockets(channel))
    channel.close()
    listener.close()
    assert "the socket of s is not removed" in caplog.text
