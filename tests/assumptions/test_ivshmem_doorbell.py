# SPDX-License-Identifier: Apache-2.0
"""What the daemon needs of QEMU's ivshmem-doorbell device and no document promises.

test (ivshmem server) ──unix socket──► QEMU ◄──qtest── test (guest)
"""

import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.assumptions import qtest
from tests.waiting import PROCESS_TIMEOUT

pytestmark = pytest.mark.vm

MIB = 2**20
OWN, PEER = 0, 7


@contextmanager
def eventfds(count: int) -> Iterator[list[int]]:
    with ExitStack() as stack:
        fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(count)]
        for fd in fds:
            stack.callback(os.close, fd)
        yield fds


@contextmanager
def window(size: int) -> Iterator[int]:
    fd = qtest.memory(size)
    try:
        yield fd
    finally:
        os.close(fd)


def signalled(fd: int) -> bool:
    return bool(select.select([fd], [], [], PROCESS_TIMEOUT)[0])


def test_wrong_protocol_version_ends_qemu_with_a_clean_error(tmp_path: Path) -> None:
    """So a second slave is refused that way."""
    with qtest.started(tmp_path, vectors=1) as qemu:
        qemu.server.send(1)
        code, log = qemu.wait()
    assert code == 1
    assert "server sent version 1" in log


def test_closing_in_the_handshake_leaves_qemu_spinning(tmp_path: Path) -> None:
    """So the daemon sends its handshake whole, and never refuses by closing."""
    with qtest.started(tmp_path, vectors=1) as qemu:
        qemu.server.send(0)
        qemu.server.send(OWN)
        qemu.server.close()
        with pytest.raises(subprocess.TimeoutExpired):
            qemu.process.wait(timeout=3)


def test_window_whose_size_is_no_power_of_two_aborts_qemu(tmp_path: Path) -> None:
    """So the daemon never offers such a window."""
    with (
        window(3 * MIB) as memory,
        eventfds(1) as own,
        qtest.started(tmp_path, vectors=1) as qemu,
    ):
        qemu.server.hello(OWN, memory, own)
        code, _ = qemu.wait()
    assert code < 0


def test_bar_2_is_the_whole_file_and_shows_what_is_written_later(
    tmp_path: Path,
) -> None:
    with (
        window(2 * MIB) as memory,
        eventfds(1) as own,
        qtest.started(tmp_path, vectors=1) as qemu,
    ):
        qemu.server.hello(OWN, memory, own)
        with qemu.guest() as guest:
            assert guest.bar2_size() == 2 * MIB
            guest.enable()
            os.pwrite(memory, b"later", 2 * MIB - 64)
            assert guest.read_bar2(2 * MIB - 64, 5) == b"later"


def test_doorbell_reaches_a_peer_as_soon_as_its_messages_are_read(
    tmp_path: Path,
) -> None:
    """So the daemon sends the master's call eventfds only when its device starts.

    The protocol has no answer.  An empty socket queue serves as one: QEMU reads and
    acts under its big lock, and a doorbell store waits for that lock.  A store before
    QEMU has read the messages is lost.
    """
    with (
        window(MIB) as memory,
        eventfds(3) as own,
        eventfds(3) as peer,
        qtest.started(tmp_path, vectors=3) as qemu,
    ):
        qemu.server.hello(OWN, memory, own)
        with qemu.guest() as guest:
            guest.enable()
            for fd in peer:
                qemu.server.send(PEER, fd)
            qemu.server.wait_read()
            for vector, fd in enumerate(peer):
                guest.doorbell(PEER, vector)
                assert signalled(fd), f"vector {vector}"


def test_new_peer_can_be_signalled_while_the_old_one_is_disconnected(
    tmp_path: Path,
) -> None:
    """So the daemon replaces call eventfds by a new peer, then disconnects the old."""
    with (
        window(MIB) as memory,
        eventfds(1) as own,
        eventfds(2) as (old, new),
        qtest.started(tmp_path, vectors=1) as qemu,
    ):
        qemu.server.hello(OWN, memory, own)
        with qemu.guest() as guest:
            guest.enable()
            qemu.server.send(PEER, old)
            qemu.server.send(PEER + 1, new)
            qemu.server.send(PEER)
            qemu.server.wait_read()
            guest.doorbell(PEER + 1, 0)
            assert signalled(new)
            guest.doorbell(PEER, 0)
            assert not select.select([old], [], [], 0.2)[0]


def test_peer_id_that_is_used_again_corrupts_qemu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So an ID is never used twice in one connection."""
    monkeypatch.setenv("MALLOC_CHECK_", "3")
    monkeypatch.setenv("MALLOC_PERTURB_", "165")
    monkeypatch.setenv("LD_PRELOAD", "libc_malloc_debug.so.0")
    with (
        window(MIB) as memory,
        eventfds(1) as own,
        eventfds(1) as (call,),
        qtest.started(tmp_path, vectors=1) as qemu,
    ):
        qemu.server.hello(OWN, memory, own)
        with suppress(BrokenPipeError, ConnectionResetError):  # it may have ended
            for _ in range(3):
                qemu.server.send(PEER, call)
                qemu.server.send(PEER)
        code, _ = qemu.wait()
    assert code < 0


def test_more_vectors_than_the_device_has_are_refused_and_the_others_work(
    tmp_path: Path,
) -> None:
    """So the agent reports a slave with too few `vectors=`: its QEMU starts anyway."""
    with (
        window(MIB) as memory,
        eventfds(3) as own,
        eventfds(1) as (call,),
        qtest.started(tmp_path, vectors=1) as qemu,
    ):
        qemu.server.hello(OWN, memory, own)
        qemu.server.send(PEER, call)
        with qemu.guest() as guest:
            guest.enable()
            qemu.server.wait_read()
            guest.doorbell(PEER, 0)
            assert signalled(call)
    assert "Too many eventfd" in qemu.log.read_text()
