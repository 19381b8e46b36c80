# SPDX-License-Identifier: Apache-2.0
"""Listening at a path, and how the log names the process at the other end."""

import os
from pathlib import Path

import pytest

from tests.fakes.listening import before_listen
from vhostpci_host import sockets
from vhostpci_host.errors import HostError
from vhostpci_host.sockets import process_text


def test_socket_that_does_not_listen_yet_is_not_taken_for_a_dead_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second daemon of that name looks at that moment."""
    path = tmp_path / "socket"
    before_listen(monkeypatch, lambda: sockets.remove_unused(path))
    with sockets.listen(path, 0o600, None) as server:
        assert sockets.leads_to(path, server)


def test_file_where_our_socket_was_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    path.write_text("mine")
    with pytest.raises(HostError, match="is no socket"):
        sockets.listen_again(path, 0o600, None)
    assert path.read_text() == "mine"


def test_process_is_named_with_its_number_and_name() -> None:
    name = Path("/proc/self/comm").read_text().strip()
    assert process_text(os.getpid()) == f"pid {os.getpid()} ({name})"


def test_process_whose_name_is_unknown_is_a_number() -> None:
    assert process_text(2**31 - 1) == f"pid {2**31 - 1}"


def test_process_of_another_pid_namespace_is_no_pid_0() -> None:
    assert process_text(0) == "a process of another PID namespace"
