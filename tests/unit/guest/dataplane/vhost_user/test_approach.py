# SPDX-License-Identifier: Apache-2.0
"""How the agent and a back-end meet."""

import os
import socket
import stat
from pathlib import Path

import pytest

from vhostpci_guest.dataplane.vhost_user.approach import (
    MODE,
    RETRY,
    Connector,
    Listener,
    make_directory,
)
from vhostpci_guest.errors import Unusable


def listening(path: Path) -> socket.socket:
    """Return another process's socket."""
    other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    other.bind(os.fspath(path))
    other.listen(1)
    return other


def test_socket_is_for_user_and_group_and_goes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = Listener(path)
    assert stat.S_IMODE(path.stat().st_mode) == MODE
    listener.close()
    assert not path.exists()


def test_socket_that_a_killed_agent_has_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listening(path).close()
    Listener(path).close()


def test_path_where_another_process_listens_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening(path):
        with pytest.raises(Unusable, match="another process listens"):
            Listener(path)
        assert path.exists()


def test_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("mine")
    with pytest.raises(Unusable, match="is no socket"):
        Listener(path)
    assert path.read_text() == "mine"


def test_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="its directory must exist"):
        Listener(tmp_path / "d" / "s")


def test_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="at most 107 bytes"):
        Listener(tmp_path / ("s" * 108))


def test_socket_that_another_process_took_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s"
    listener = Listener(path)
    path.unlink()
    with listening(path):
        listener.tick()
        listener.tick()
        assert listener.problem
        assert len(caplog.records) == 1
        listener.close()
        assert path.exists()


def test_back_end_that_listens_is_connected_to(tmp_path: Path) -> None:
    path = tmp_path / "s"
    connector = Connector(path)
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


def test_directory_is_made_for_the_agents_user(tmp_path: Path) -> None:
    made = tmp_path / "d"
    make_directory(made, (os.getuid(), os.getgid()))
    assert made.is_dir()
    make_directory(made, (1, 1))  # one that is there stays whose it is
    assert made.stat().st_uid == os.getuid()
    with pytest.raises(Unusable, match="cannot make the directory"):
        make_directory(tmp_path / "a" / "b", None)
