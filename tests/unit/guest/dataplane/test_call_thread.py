# SPDX-License-Identifier: Apache-2.0
"""The thread that passes the calls of a foreign back-end on, and makes its kicks."""

import ctypes
import errno
import os
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest

from tests.fakes.pair import CAN_CONFINE
from tests.ringtest.build import ADDRESS, THREAD, build_calls, run
from tests.threads import is_gone, only_thread
from tests.waiting import TIMEOUT, eventually
from vhostpci_guest.dataplane.call_thread import CallThread
from vhostpci_guest.dataplane.faults import RingError
from vhostpci_guest.dataplane.native import Calls, CallsConf
from vhostpci_guest.eventfds import drain, new_eventfd, signal
from vhostpci_guest.interfaces import Doorbell, Eventfd, Ties


class Register:
    """A doorbell register in ordinary memory, which outlives the thread."""

    memories: ClassVar[list[ctypes.c_uint32]] = []

    def __init__(self) -> None:
        self._memory = ctypes.c_uint32(0)
        self.memories.append(self._memory)

    def doorbell(self, ties: Ties | None = None) -> Doorbell:
        return Doorbell(ctypes.addressof(self._memory), 5, 3, ties)

    def is_rung(self) -> bool:
        return self._memory.value == 5 << 16 | 3

    def clear(self) -> None:
        self._memory.value = 0


class FakeTies:
    """A kernel that rings doorbells, or refuses to."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.tied: list[tuple[int, int, int]] = []
        self._refuses = refuses

    def tie(self, eventfd: int, peer: int, vector: int) -> "FakeTie | None":
        """Note a tie."""
        if self._refuses:
            return None
        self.tied.append((eventfd, peer, vector))
        return FakeTie(self)


class FakeTie:
    """A tie; its eventfd must be open when it is undone."""

    def __init__(self, ties: FakeTies) -> None:
        self._ties = ties

    def close(self) -> None:
        """Forget the tie."""
        os.fstat(self._ties.tied.pop()[0])


@pytest.fixture
def calls() -> Iterator[CallThread]:
    thread = CallThread("web", confine=CAN_CONFINE)
    yield thread
    thread.close()
    Register.memories.clear()


@pytest.fixture
def kick_fd() -> Iterator[int]:
    fd = new_eventfd()
    yield fd
    os.close(fd)


def test_signal_of_the_back_end_rings_the_masters_doorbell(
    calls: CallThread, kick_fd: int
) -> None:
    register = Register()
    given = calls.add(1, kick_fd=kick_fd, call=register.doorbell())
    assert given.kick_fd == kick_fd
    assert given.counted
    for count in (1, 2):  # the second, although nothing has read the first one
        register.clear()
        assert given.call_fd is not None
        signal(given.call_fd)
        assert eventually(register.is_rung)
        assert eventually(partial(counted, calls, count))
    assert only_thread("web/call")


def counted(calls: CallThread, count: int) -> bool:
    return calls.counts(1) == (count, 0)


def test_last_call_reaches_the_master_before_the_ring_is_removed(
    calls: CallThread, kick_fd: int
) -> None:
    for _ in range(200):
        register = Register()
        given = calls.add(0, kick_fd=kick_fd, call=register.doorbell())
        assert given.call_fd is not None
        signal(given.call_fd)
        calls.remove(0)
        assert register.is_rung()


def test_back_end_has_the_masters_own_eventfd_if_there_is_one(
    calls: CallThread, kick_fd: int
) -> None:
    call = new_eventfd()
    given = calls.add(0, kick_fd=kick_fd, call=Eventfd(call))
    assert given.call_fd == call
    assert not given.counted
    assert is_gone("web/call")
    calls.remove(0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(call)


def test_kernel_that_can_ring_the_doorbell_needs_no_thread(
    calls: CallThread, kick_fd: int
) -> None:
    ties = FakeTies()
    given = calls.add(0, kick_fd=kick_fd, call=Register().doorbell(ties))
    assert ties.tied == [(given.call_fd, 5, 3)]
    assert not given.counted
    assert is_gone("web/call")
    calls.remove(0)
    assert ties.tied == []


def test_thread_rings_where_the_kernel_refuses(calls: CallThread, kick_fd: int) -> None:
    register = Register()
    ties = FakeTies(refuses=True)
    given = calls.add(0, kick_fd=kick_fd, call=register.doorbell(ties))
    assert given.counted
    assert given.call_fd is not None
    signal(given.call_fd)
    assert eventually(register.is_rung)


def test_call_that_is_a_socket_gets_a_packet(calls: CallThread, kick_fd: int) -> None:
    ours, masters = socket.socketpair()
    with ours, masters:
        masters.settimeout(TIMEOUT)
        given = calls.add(0, kick_fd=kick_fd, call=Eventfd(os.dup(ours.fileno())))
        assert given.call_fd is not None
        signal(given.call_fd)
        assert len(masters.recv(64)) == 8


def test_ring_without_a_call_has_none(calls: CallThread, kick_fd: int) -> None:
    given = calls.add(0, kick_fd=kick_fd, call=None)
    assert given.call_fd is None


def test_ring_without_interrupts_is_kicked_when_its_driver_moves_on(
    calls: CallThread,
) -> None:
    avail_idx = ctypes.c_uint16(2**16 - 1)
    given = calls.add(
        2, kick_fd=None, call=None, avail_idx_addr=ctypes.addressof(avail_idx)
    )
    for number in range(3):
        assert calls.counts(2) == (0, number)  # it stands still: no kick
        avail_idx.value += 1
        assert eventually(lambda: drain(given.kick_fd))


def test_ring_whose_driver_cannot_be_watched_is_kicked_all_the_time(
    calls: CallThread,
) -> None:
    given = calls.add(2, kick_fd=None, call=None)
    for _ in range(3):
        assert eventually(lambda: drain(given.kick_fd))


def test_ring_can_come_back_after_its_removal(calls: CallThread, kick_fd: int) -> None:
    for register in (Register(), Register()):
        given = calls.add(1, kick_fd=kick_fd, call=register.doorbell())
        assert given.call_fd is not None
        signal(given.call_fd)
        assert eventually(register.is_rung)
        calls.remove(1)


def test_kick_that_is_ours_is_closed_with_the_ring(calls: CallThread) -> None:
    fd = new_eventfd()
    calls.add(0, kick_fd=fd, call=None, owns_kick=True)
    calls.remove(0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize(
    ("index", "change"),
    [
        (64, {}),
        (0, {"call_addr": 2}),
        (0, {"avail_idx_addr": 1}),
    ],
    ids=["no such ring", "doorbell", "avail idx"],
)
def test_what_the_thread_could_not_use_is_refused(
    index: int, change: dict[str, int]
) -> None:
    conf = CallsConf(
        **{
            **dict.fromkeys(("call_fd", "out_fd", "kick_fd"), -1),
            **dict.fromkeys(("call_addr", "call_value", "avail_idx_addr"), 0),
            **change,
        }
    )
    thread = Calls("calls", confine=False, poll_min=0.001, poll_max=0.001)
    try:
        with pytest.raises(RingError) as refused:
            thread.add(index, conf)
        # Not EBUSY, which what lies behind the rings may look like.
        assert refused.value.errno == errno.EINVAL
    finally:
        thread.close()


def test_thread_ends_also_if_something_of_a_ring_cannot_be_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, register = CallThread("fails", confine=CAN_CONFINE), Register()
    calls.add(0, kick_fd=None, call=register.doorbell())
    assert only_thread("fails/call")

    def fail(_index: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(calls, "remove", fail)
        with pytest.raises(OSError, match="Input/output error"):
            calls.close()
    assert is_gone("fails/call")
    calls.close()  # the eventfds


@pytest.mark.parametrize("options", [ADDRESS, THREAD], ids=["address", "thread"])
def test_sanitizer_finds_nothing_while_rings_come_and_go(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    done = run(build_calls(tmp_path / "calls", *options), "0.3")
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 0
