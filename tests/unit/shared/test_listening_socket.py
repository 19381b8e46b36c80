# SPDX-License-Identifier: Apache-2.0
"""A socket is at its path when it listens, and not before."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from tests.fakes.listening import before_listen
from vhostpci_shared import listening_socket
from vhostpci_shared.listening_socket import is_bound_for

LONGEST = 107
"""Bytes in the longest path that Linux takes."""


def listen(path: Path, group: int | None = None) -> socket.socket:
    return listening_socket.listen(
        path, lambda: path.unlink(missing_ok=True), mode=0o660, group=group, backlog=1
    )


def can_be_reached(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))
    return True


def test_path_is_not_there_before_the_socket_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "socket", list[bool]()
    before_listen(monkeypatch, lambda: seen.append(path.exists()))
    with listen(path):
        assert can_be_reached(path)
    assert seen == [False]
    assert list(tmp_path.iterdir()) == [path]


def test_file_has_its_mode_and_group_when_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, seen = os.rename, list[tuple[int, int]]()

    def look(old: Path, new: Path) -> None:
        info = old.stat()
        seen.append((stat.S_IMODE(info.st_mode), info.st_gid))
        rename(old, new)

    monkeypatch.setattr(os, "rename", look)
    listen(tmp_path / "socket", os.getegid()).close()
    assert seen == [(0o660, os.getegid())]


def test_dead_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listen(path).close()
    with listen(path):
        assert can_be_reached(path)
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_left_of_a_socket_that_cannot_listen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(errno.ENOBUFS, "No buffer space available")

    before_listen(monkeypatch, fail)
    with pytest.raises(OSError, match="No buffer space"):
        listen(tmp_path / "socket")
    assert list(tmp_path.iterdir()) == []


def test_what_may_not_be_cleared_stays_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    path.write_text("mine")

    def refuse() -> None:
        raise ValueError("it is in use")

    with pytest.raises(ValueError, match="in use"):
        listening_socket.listen(path, refuse, backlog=1)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("spare", range(10))
def test_path_may_have_any_length_that_linux_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spare: int
) -> None:
    """One without room for a temporary name as well."""
    monkeypatch.chdir(tmp_path)
    path = Path("x" * (LONGEST - spare))
    for _ in range(2):  # the second one replaces the first
        with listen(path) as server:
            assert can_be_reached(path)
            assert is_bound_for(path, server.getsockname())
    assert list(tmp_path.iterdir()) == [tmp_path / path]


def test_bound_name_tells_the_path(tmp_path: Path) -> None:
    path = tmp_path / "net0.control"
    with listen(path) as server:
        name = server.getsockname()
    assert is_bound_for(path, name)
    assert is_bound_for(path, str(path))  # what systemd has made
    for other in ("net0", "net0.contro", "net0.control.1", "net1.control"):
        assert not is_bound_for(tmp_path / other, name)
    for name in (f"{path}~", f"{path}~12345x", f"{path}.1", f"{path}\n", b"\0", ""):
        assert not is_bound_for(path, name)
