# SPDX-License-Identifier: Apache-2.0
"""Descriptors have one owner, and notifiers never wait."""

import contextlib
import gc
import os
import socket
import warnings

import pytest

from tests.waiting import returns
from vhostpci_host.fds import Fd, Notifier
from vhostpci_shared.wire import ProtocolError

FULL = 2**64 - 2


def test_descriptor_is_closed_once() -> None:
    fd = Fd(os.dup(0))
    number = fd.fileno()
    fd.close()
    fd.close()
    assert fd.closed
    with pytest.raises(ValueError, match="closed"):
        fd.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_forgotten_descriptor_is_closed_with_a_warning() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        Fd(os.dup(0))
        gc.collect()
    assert ["unclosed descriptor" in str(one.message) for one in seen] == [True]


def test_notifier_is_taken_over_from_its_descriptor() -> None:
    fd = Fd(os.eventfd(0))
    with Notifier.adopt(fd) as notifier:
        assert fd.closed
        assert notifier.is_eventfd


def test_descriptor_that_is_no_notifier_stays_with_its_owner() -> None:
    with Fd(os.memfd_create("file")) as fd:
        with pytest.raises(ProtocolError, match="no eventfd, no pipe"):
            Notifier.adopt(fd)
        assert not fd.closed


def test_one_drain_takes_all_signals() -> None:
    with Notifier.new() as notifier:
        assert not notifier.drain()
        notifier.signal()
        notifier.signal()
        assert notifier.drain()
        assert not notifier.drain()


@pytest.mark.parametrize("kind", ["eventfd", "pipe", "socket"])
def test_drain_does_not_rely_on_a_flag_that_others_may_clear(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clear it as soon as it is set, as another owner of the open file may."""
    ends: list[int] = []
    if kind == "pipe":
        ends += os.pipe()
    elif kind == "socket":
        ends += [end.detach() for end in socket.socketpair()]
    number = ends.pop(0) if ends else os.eventfd(0)
    with Notifier.adopt(Fd(number)) as notifier:
        os.set_blocking(number, True)
        monkeypatch.setattr(os, "set_blocking", lambda fd, blocking: None)
        assert not notifier.drain()
    for fd in ends:
        os.close(fd)


@pytest.mark.parametrize("kind", ["eventfd", "pipe", "socket"])
def test_signal_does_not_rely_on_a_flag_that_others_may_clear(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clear it as soon as it is set, and fill the notifier."""
    ends: list[int] = []
    if kind == "pipe":
        ends += reversed(os.pipe())
    elif kind == "socket":
        ends += [end.detach() for end in socket.socketpair()]
    number = ends.pop(0) if ends else os.eventfd(0)
    with Notifier.adopt(Fd(number)) as notifier:
        fill(notifier)
        monkeypatch.setattr(os, "set_blocking", lambda fd, blocking: None)
        returned = returns(notifier.signal)
        os.read(ends[0] if ends else number, 1 << 20)  # which ends a wait
    for fd in ends:
        os.close(fd)
    assert returned


def fill(notifier: Notifier) -> None:
    number = notifier.fileno()
    if notifier.is_eventfd:
        os.eventfd_write(number, FULL)
        return
    os.set_blocking(number, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(number, bytes(8))
    os.set_blocking(number, True)


def test_pipe_is_a_notifier_until_its_other_end_closes() -> None:
    read, write = (Fd(fd) for fd in os.pipe())
    with Notifier.adopt(read) as reader, Notifier.adopt(write) as writer:
        assert not reader.is_eventfd
        writer.signal()
        assert reader.drain()
        assert not reader.drain()
        writer.close()
        with pytest.raises(EOFError):
            reader.drain()


def test_signal_to_a_pipe_without_a_reader_is_dropped() -> None:
    read, write = os.pipe()
    os.close(read)
    with Notifier.adopt(Fd(write)) as writer:
        writer.signal()


def test_writing_end_of_a_pipe_is_at_its_end() -> None:
    """So a front-end that sends it as a kick does not end the daemon."""
    read, write = (Fd(fd) for fd in os.pipe())
    with read, Notifier.adopt(write) as writer, pytest.raises(EOFError):
        writer.drain()


def test_pair_of_sockets_is_a_pipe() -> None:
    """User Mode Linux's call notifiers are such pairs."""
    left, right = (Fd(end.detach()) for end in socket.socketpair())
    with Notifier.adopt(left) as reader, Notifier.adopt(right) as writer:
        assert not reader.is_eventfd
        writer.signal()
        assert reader.drain()
        assert not reader.drain()
        writer.close()
        reader.signal()
        with pytest.raises(EOFError):
            reader.drain()


def test_socket_that_was_closed_with_signals_unread_is_at_its_end() -> None:
    """Linux reports it once, as ECONNRESET and not as an end of file."""
    left, right = (Fd(end.detach()) for end in socket.socketpair())
    with Notifier.adopt(left) as reader, Notifier.adopt(right) as writer:
        reader.signal()
        writer.close()
        with pytest.raises(EOFError, match="gone"):
            reader.drain()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_sockets_that_keep_signals_apart_are_no_pipe(kind: socket.SocketKind) -> None:
    """One read takes one signal of them, and a drain has to take all."""
    left, right = (Fd(end.detach()) for end in socket.socketpair(type=kind))
    with left, right:
        with pytest.raises(ProtocolError, match="no connected Unix socket"):
            Notifier.adopt(left)
        assert not left.closed


def test_tcp_connection_is_no_notifier() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        with (
            Fd(client.detach()) as fd,
            pytest.raises(ProtocolError, match="no connected Unix socket"),
        ):
            Notifier.adopt(fd)


def test_signal_to_a_full_socket_does_not_wait() -> None:
    left, right = (Fd(end.detach()) for end in socket.socketpair())
    with left, Notifier.adopt(right) as writer:
        for _ in range(1000):
            writer.signal()


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        (socket.AF_UNIX, socket.SOCK_STREAM),
        (socket.AF_UNIX, socket.SOCK_DGRAM),
        (socket.AF_INET, socket.SOCK_STREAM),
    ],
)
def test_socket_without_an_other_end_is_no_notifier(
    family: socket.AddressFamily, kind: socket.SocketKind
) -> None:
    with Fd(socket.socket(family, kind).detach()) as fd:
        with pytest.raises(ProtocolError, match="no connected Unix socket"):
            Notifier.adopt(fd)
        assert not fd.closed
