# SPDX-License-Identifier: Apache-2.0
"""An unwanted connection lingers until QEMU closes it; a process is cut off at once."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.loop import ManualLoop
from vhostpci_host import sockets
from vhostpci_host.ivshmem.linger import LINGER, MOST, Linger
from vhostpci_shared import ivshmem

Pair = tuple[socket.socket, socket.socket]


def pair() -> Pair:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


@pytest.fixture
def qemu() -> Iterator[Pair]:
    """A connection whose other end has no name."""
    ours, theirs = pair()
    with ours, theirs:
        yield ours, theirs


def test_refusal_can_be_read_until_qemu_closes_the_connection(qemu: Pair) -> None:
    """QEMU reads it in device_add, perhaps long after chardev-add has connected."""
    ours, theirs = qemu
    loop = ManualLoop()
    Linger(loop).refuse(ours)
    loop.advance(LINGER / 2)
    assert theirs.recv(8) != ivshmem.encode(ivshmem.VERSION)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    theirs.close()
    loop.advance()
    assert ours.fileno() < 0
    assert loop.watched() == set()


def test_connection_that_qemu_never_closes_is_closed_after_a_time(qemu: Pair) -> None:
    loop = ManualLoop()
    Linger(loop).leave(qemu[0])
    loop.advance(LINGER + 1)
    assert qemu[0].fileno() < 0
    assert loop.watched() == set()


def test_connection_that_qemu_has_closed_is_closed_at_once(qemu: Pair) -> None:
    loop = ManualLoop()
    qemu[1].close()
    Linger(loop).leave(qemu[0])
    assert qemu[0].fileno() < 0
    assert loop.watched() == set()


def test_bytes_from_qemu_do_not_end_the_lingering_connection(qemu: Pair) -> None:
    loop = ManualLoop()
    Linger(loop).leave(qemu[0])
    qemu[1].send(b"?")
    loop.advance()
    assert qemu[0].fileno() >= 0


def test_refused_process_is_disconnected_at_once(tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX) as agent,
    ):
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        agent.bind("")
        agent.connect(str(tmp_path / "socket"))
        connection, _ = listener.accept()
        Linger(ManualLoop()).refuse(connection)
        agent.settimeout(1)
        assert len(agent.recv(8)) == 8
        assert agent.recv(1) == b""


def test_number_of_lingering_connections_is_bounded() -> None:
    """The oldest goes: its QEMU has had the most time to read what it was sent."""
    linger = Linger(ManualLoop())
    pairs = [pair() for _ in range(MOST + 2)]
    for ours, _ in pairs:
        linger.leave(ours)
    assert [ours.fileno() >= 0 for ours, _ in pairs] == [False] * 2 + [True] * MOST
    linger.close()
    for ours, theirs in pairs:
        assert ours.fileno() < 0
        theirs.close()


def test_program_with_many_connections_cannot_have_others_hung_up_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = [pair() for _ in range(MOST + 3)]
    pids = {ours: 7 for ours, _ in pairs[1:]}
    monkeypatch.setattr(sockets, "peer_pid", lambda ours: pids.get(ours, 6))
    linger = Linger(ManualLoop())
    for ours, _ in pairs:
        linger.leave(ours)
    assert pairs[0][0].fileno() >= 0
    assert [ours.fileno() for ours, _ in pairs[1:4]] == [-1, -1, pairs[3][0].fileno()]
    linger.close()
    for _, theirs in pairs:
        theirs.close()
