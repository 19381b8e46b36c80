# SPDX-License-Identifier: Apache-2.0
"""What the agent tells systemd."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.source import FakeSource
from tests.unit.guest.loop import Planes, in_loop
from vhostpci_guest.agent import Agent
from vhostpci_guest.service_manager import ADDRESS, PAUSE, ServiceManager


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket that a service manager reads."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.bind(str(tmp_path / "notify"))
        ours.settimeout(20)
        yield ours


def test_agent_is_ready_when_it_serves_and_tells_its_end(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ADDRESS, systemd.getsockname())
    with in_loop(Agent(FakeSource(), Planes().port)):
        assert systemd.recv(100) == b"READY=1\nWATCHDOG=1"
        # No program that the agent starts must speak for it.
        assert ADDRESS not in os.environ
        assert systemd.recv(100) == b"READY=1\nWATCHDOG=1"
    assert systemd.recv(100) == b"STOPPING=1"


def test_it_says_no_more_than_one_word_in_a_while(systemd: socket.socket) -> None:
    manager = ServiceManager(systemd.getsockname())
    for now in (0.0, PAUSE / 2, PAUSE, PAUSE * 1.5):
        manager.alive(now)
    systemd.setblocking(False)
    assert [systemd.recv(100) for _ in range(2)] == [b"READY=1\nWATCHDOG=1"] * 2
    with pytest.raises(BlockingIOError):
        systemd.recv(100)


def test_manager_with_an_abstract_name_is_told() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.bind("")  # the kernel chooses one
        name = ours.getsockname()
        ServiceManager(f"@{name[1:].decode()}").stopping()
        ours.settimeout(20)
        assert ours.recv(100) == b"STOPPING=1"


def test_manager_that_does_not_listen_or_read_stops_nothing(
    systemd: socket.socket, tmp_path: Path
) -> None:
    ServiceManager(None).stopping()
    ServiceManager(str(tmp_path / "nothing")).stopping()
    manager = ServiceManager(systemd.getsockname())
    for _ in range(1000):  # its queue is full after some tens
        manager.stopping()
