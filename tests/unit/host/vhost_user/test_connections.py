# SPDX-License-Identifier: Apache-2.0
"""Connections over socket pairs: split messages, floods, and peers that never read."""

import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.descriptors import open_descriptors
from tests.fakes.loop import ManualLoop
from vhostpci_host.fds import Notifier
from vhostpci_host.ivshmem.connection import MAX_QUEUE, SlaveConnection
from vhostpci_host.ivshmem.linger import LINGER, Linger
from vhostpci_host.ivshmem.peers import Outgoing
from vhostpci_host.vhost_user import wire
from vhostpci_host.vhost_user.connection import (
    MESSAGES_AT_ONCE,
    SILENT,
    TURN,
    MasterConnection,
)
from vhostpci_host.vhost_user.message import Message
from vhostpci_shared import ivshmem
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request
from vhostpci_shared.wire import ProtocolError


class Owner:
    """The owner of a connection, which records each callback."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, int]] = []
        self.said: list[str] = []
        self.closed = 0
        self.received: Callable[[], None] = lambda: None
        """Called with each message."""

    def receive(self, message: Message) -> None:
        with message:
            self.messages.append((message.header.name, len(message.fds)))
            self.received()

    def master_closed(self) -> None:
        self.closed += 1

    def slave_closed(self) -> None:
        self.closed += 1

    def say_once(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


Pair = tuple[socket.socket, socket.socket]


def master(
    pair: Pair, loop: ManualLoop | None = None
) -> tuple[ManualLoop, Owner, MasterConnection]:
    loop, owner = loop or ManualLoop(), Owner()
    connection = MasterConnection(
        pair[0],
        os.getpid(),
        loop,
        receive=owner.receive,
        closed=owner.master_closed,
        say_once=owner.say_once,
    )
    connection.start()
    return loop, owner, connection


def test_messages_read_together_are_split_with_their_descriptors(
    pair: Pair,
) -> None:
    loop, owner, connection = master(pair)
    kick = vu.message(Request.SET_VRING_KICK, vu.VringFd(0))
    pair[1].send(vu.message(Request.SET_OWNER))
    with closing(Notifier.new()) as fd:
        socket.send_fds(pair[1], [kick], [fd.fileno()])
        socket.send_fds(pair[1], [kick], [fd.fileno()])
    pair[1].send(vu.message(Request.GET_FEATURES))
    loop.advance()
    assert owner.messages == [
        *(("SET_OWNER", 0), ("SET_VRING_KICK", 1)),
        *(("SET_VRING_KICK", 1), ("GET_FEATURES", 0)),
    ]
    connection.close()


def test_paused_connection_reads_nothing_until_it_is_resumed(pair: Pair) -> None:
    loop, owner, connection = master(pair)
    connection.pause()
    pair[1].send(vu.message(Request.SET_OWNER))
    loop.advance(1.0)
    assert owner.messages == []
    connection.resume()
    loop.advance()
    assert owner.messages == [("SET_OWNER", 0)]
    connection.close()


def test_connection_that_closed_while_it_was_paused_is_not_resumed(
    pair: Pair,
) -> None:
    loop, _, connection = master(pair)
    connection.pause()
    connection.close()
    connection.resume()
    assert loop.watched() == set()


def test_message_behind_the_one_that_pauses_the_connection_waits(pair: Pair) -> None:
    """Both may have come with one read."""
    loop, owner, connection = master(pair)
    owner.received = connection.pause
    pair[1].send(vu.message(Request.SET_OWNER) + vu.message(Request.GET_FEATURES))
    loop.advance()
    assert owner.messages == [("SET_OWNER", 0)]
    connection.resume()
    loop.advance()
    assert owner.messages == [("SET_OWNER", 0), ("GET_FEATURES", 0)]
    connection.close()


def test_front_ends_with_much_to_say_take_turns(pair: Pair) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        loop, owner, connection = master(pair)
        _, other, second = master((ours, theirs), loop)
        count = 3 * MESSAGES_AT_ONCE
        for end in (pair[1], theirs):
            end.send(vu.message(Request.GET_FEATURES) * count)
        seen: list[int] = []
        owner.received = lambda: seen.append(len(other.messages))
        loop.advance()
        assert len(owner.messages) == len(other.messages) == count
        assert 0 < seen[count // 2] < count
        connection.close()
        second.close()


def test_others_come_first_after_messages_that_take_long(pair: Pair) -> None:
    loop, owner, connection = master(pair)

    def take_long() -> None:
        loop.now += TURN / 2

    owner.received = take_long
    pair[1].send(vu.message(Request.GET_FEATURES) * 8)
    connection._readable()
    assert len(owner.messages) == 2
    loop.advance()
    assert len(owner.messages) == 8
    connection.close()


# A front-end that does not go on.


def test_front_end_that_we_make_wait_does_not_hang(pair: Pair) -> None:
    loop, _, connection = master(pair)
    connection.pause()
    loop.advance(2 * SILENT)
    assert connection.hangs == ""
    connection.close()


def test_messages_without_an_introduction_give_no_more_time(pair: Pair) -> None:
    loop, _, connection = master(pair)
    for _ in range(3):
        pair[1].send(vu.message(Request.GET_FEATURES))
        loop.advance(SILENT / 2)
    assert "it has not sent SET_OWNER" in connection.hangs
    connection.close()


def test_each_byte_of_a_message_gives_no_more_time(pair: Pair) -> None:
    loop, _, connection = master(pair)
    pair[1].send(vu.message(Request.SET_OWNER))
    loop.advance(2 * SILENT)
    assert connection.hangs == ""
    for byte in vu.message(Request.GET_FEATURES)[:3]:
        pair[1].send(bytes([byte]))
        loop.advance(SILENT / 2)
    assert "half a message" in connection.hangs
    connection.close()


@pytest.mark.parametrize(
    ("sent", "silent"),
    [(b"", True), (b"\x01", False), (vu.message(Request.GET_FEATURES), False)],
)
def test_socket_of_a_silent_front_end_alone_is_given_back(
    pair: Pair, sent: bytes, *, silent: bool
) -> None:
    """It may be a slave's QEMU, which takes a refusal; a front-end takes none."""
    loop, owner, connection = master(pair)
    pair[1].send(sent)
    loop.advance()
    given_back = connection.give_back()
    assert (given_back is not None) == silent
    assert owner.closed == 1
    if given_back is not None:
        given_back.close()


def test_half_a_message_leaves_no_descriptor(pair: Pair) -> None:
    before = len(open_descriptors())
    loop, owner, _ = master(pair)
    with closing(Notifier.new()) as fd:
        socket.send_fds(pair[1], [b"\x0c"], [fd.fileno()] * 8)
    loop.advance()
    pair[1].close()
    loop.advance()
    assert owner.closed == 1
    assert len(open_descriptors()) == before - 2


def test_descriptors_that_trickle_in_are_bounded(pair: Pair) -> None:
    loop, owner, _ = master(pair)
    with closing(Notifier.new()) as fd:
        for _ in range(9):
            socket.send_fds(pair[1], [b"\x01"], [fd.fileno()])
    loop.advance()
    reason = "more than 8 descriptors in one message"
    assert owner.said == [f"front-end (pid {os.getpid()}) dropped: {reason}"]


def test_front_end_that_reads_no_reply_is_dropped(pair: Pair) -> None:
    _, owner, connection = master(pair)
    reply = vu.reply(Request.GET_FEATURES, vu.U64(0))
    for _ in range(100_000):
        if owner.closed:
            break
        connection.send(reply)
    assert "does not read our replies" in owner.said[0]


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_end_the_connection(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        loop, owner, connection = master((ours, theirs))
        theirs.send(data)
        loop.advance()
        assert owner.closed == len(owner.said)
        connection.close()


def slave(pair: Pair) -> tuple[ManualLoop, Owner, SlaveConnection]:
    loop, owner = ManualLoop(), Owner()
    connection = SlaveConnection(owner, pair[0], loop, Linger(loop))
    connection.start()
    return loop, owner, connection


def test_handshake_is_sent_whole_before_the_slave_reads(pair: Pair) -> None:
    """A device has at most 32 queue pairs, which are 64 rings."""
    loop, owner, connection = slave(pair)
    with closing(Notifier.new()) as fd:
        connection.send([Outgoing(0, fd) for _ in range(200)])
    assert connection.unread()
    seen = 0
    while connection.unread():
        data, fds, _, _ = socket.recv_fds(pair[1], 8, 4)
        assert len(data) == 8
        assert len(fds) == 1
        os.close(fds[0])
        seen += 1
        loop.advance(0.1)
    assert seen == 200
    assert owner.closed == 0
    connection.close()


def test_messages_that_do_not_fit_the_socket_are_sent_later_in_order(
    pair: Pair,
) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    loop, _, connection = slave(pair)
    connection.send([Outgoing(number) for number in range(1000)])
    seen: list[int] = []
    while connection.unread():
        seen.append(int.from_bytes(pair[1].recv(8), "little"))
        loop.advance(0.05)
    assert seen == list(range(1000))
    connection.close()


def test_slave_that_never_reads_is_dropped_after_a_time(pair: Pair) -> None:
    before = len(open_descriptors())
    loop, owner, connection = slave(pair)
    with closing(Notifier.new()) as fd:
        for _ in range(MAX_QUEUE // 50):
            connection.send([Outgoing(2, fd)] * 20 + [Outgoing(2)] * 80)
    loop.advance(1.0)
    assert "unread" in owner.said[0]
    assert owner.closed == 1
    pair[1].close()
    loop.advance()
    assert len(open_descriptors()) == before - 2


def test_client_that_sends_data_is_no_slave(pair: Pair) -> None:
    loop, owner, connection = slave(pair)
    with closing(Notifier.new()) as fd:
        socket.send_fds(pair[1], [b"hello"], [fd.fileno()])
    before = len(open_descriptors())
    loop.advance()
    assert connection.spoke
    assert (owner.closed, len(open_descriptors())) == (1, before)
    assert "it sends data, which no slave does" in owner.said[0]
    pair[1].close()
    loop.advance()


def test_slave_that_disconnects_in_the_handshake_is_reported_afterwards(
    pair: Pair,
) -> None:
    """The connection reports its end only after the device has finished sending."""
    loop, owner, connection = slave(pair)
    pair[1].close()
    connection.send([Outgoing(0), Outgoing(0)])
    assert owner.closed == 0
    loop.advance()
    assert owner.closed == 1


def test_reply_to_a_closed_connection_ends_it(pair: Pair) -> None:
    pair[1].close()
    with pytest.raises(EOFError):
        wire.send(pair[0], b"x")


def test_received_descriptor_is_not_inherited_by_a_child(pair: Pair) -> None:
    with closing(Notifier.new()) as fd:
        os.set_inheritable(fd.fileno(), True)
        socket.send_fds(pair[1], [b"x"], [fd.fileno()])
    _, fds = wire.receive(pair[0], 1)
    with fds[0] as received:
        assert not os.get_inheritable(received.fileno())


def test_more_descriptors_than_there_is_room_for_are_refused(pair: Pair) -> None:
    before = len(open_descriptors())
    with closing(Notifier.new()) as fd:
        socket.send_fds(pair[1], [b"x"], [fd.fileno()] * 50)
    with pytest.raises(ProtocolError, match="descriptors"):
        wire.receive(pair[0], 1)
    assert len(open_descriptors()) == before


@contextmanager
def without_descriptors() -> Iterator[None]:
    """Let no further descriptor be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_descriptors()) + 1, hard))
    held = []
    try:
        while True:
            held.append(os.dup(0))
    except OSError:
        yield
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_slave_is_refused_without_descriptors_for_its_handshake(pair: Pair) -> None:
    loop, owner, connection = slave(pair)
    with closing(Notifier.new()) as fd, without_descriptors():
        connection.send([Outgoing(0), Outgoing(0, fd)])
    assert ivshmem.decode(pair[1].recv(8)) == ivshmem.EXHAUSTED
    loop.advance()
    assert owner.closed == 1
    assert "no descriptors are left" in owner.said[0]
    pair[1].close()
    loop.advance()


def test_rest_of_a_handshake_is_sent_though_descriptors_run_out(pair: Pair) -> None:
    """A QEMU that has read half of it stands still with its whole VM."""
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    loop, owner, connection = slave(pair)
    connection.send([Outgoing(number) for number in range(500)])
    with closing(Notifier.new()) as fd, without_descriptors():
        connection.send([Outgoing(7), Outgoing(7, fd)])
    seen: list[int] = []
    pair[1].setblocking(False)
    while not owner.closed:
        with suppress(BlockingIOError):
            seen.append(int.from_bytes(pair[1].recv(8), "little"))
        loop.advance(0.05)
    with suppress(BlockingIOError):
        while data := pair[1].recv(8):
            seen.append(int.from_bytes(data, "little"))
    assert seen == list(range(500))
    pair[1].close()
    loop.advance()


def test_slave_that_reads_no_rest_of_its_handshake_is_dropped_after_a_time(
    pair: Pair,
) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    loop, owner, connection = slave(pair)
    connection.send([Outgoing(number) for number in range(500)])
    with closing(Notifier.new()) as fd, without_descriptors():
        connection.send([Outgoing(7, fd)])
    loop.advance(LINGER - 1.0)
    assert owner.closed == 0
    loop.advance(2.0)
    assert owner.closed == 1
    pair[1].close()
    loop.advance()
