# SPDX-License-Identifier: Apache-2.0
"""Messages stay in the socket until they are served, with what belongs to each."""

import array
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from vhostpci_host.fds import Fd, Notifier, identity
from vhostpci_host.keeper.shelf import Shelf
from vhostpci_host.keeper.slots import Mark
from vhostpci_host.keeper.store import DescriptorStore
from vhostpci_host.vhost_user.peek import PeekReader
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request
from vhostpci_shared.wire import ProtocolError

FEATURES = vu.message(Request.GET_FEATURES, None)
ENABLE = vu.message(Request.SET_VRING_ENABLE, vu.VringState(0, 1))
KICK = vu.message(Request.SET_VRING_KICK, vu.VringFd(0))
NO_KICK = vu.message(Request.SET_VRING_KICK, vu.VringFd(0, nofd=True))


class Line:
    """A front-end's socket, and the reader at its other end."""

    def __init__(self) -> None:
        self.front_end, self.ours = socket.socketpair()
        self.ours.setblocking(False)
        channel, self._keeper = socket.socketpair()
        self.store = DescriptorStore(channel, {})
        self.shelf = Shelf.new(self.store, lambda keep: None)
        self.reader = PeekReader(self.ours, self.shelf)

    def send(self, data: bytes, *fds: Fd) -> None:
        rights = array.array("i", [fd.fileno() for fd in fds])
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else []
        self.front_end.sendmsg([data], beside)

    def look(self) -> tuple[str, list[tuple[int, int, int]]]:
        """Return the next message's name and its descriptors; it stays."""
        message = self.reader.read()
        assert message is not None
        with message:
            return message.header.name, [identity(fd) for fd in message.fds]

    def close(self) -> None:
        self.reader.close()
        self.shelf.close()
        self.store.close()
        for one in (self.front_end, self.ours, self._keeper):
            one.close()


@pytest.fixture
def line() -> Iterator[Line]:
    with closing(Line()) as line:
        yield line


def test_message_stays_until_it_is_consumed(line: Line) -> None:
    line.send(FEATURES)
    line.send(ENABLE)
    assert line.look()[0] == "GET_FEATURES"
    successor = PeekReader(line.ours, line.shelf)
    message = successor.read()
    assert message is not None
    assert message.header.name == "GET_FEATURES"
    line.reader.consume()
    assert line.look()[0] == "SET_VRING_ENABLE"
    line.reader.consume()
    assert line.reader.read() is None


def test_each_message_has_its_own_descriptors(line: Line) -> None:
    """Linux shows those of the next message where this one has none."""
    with Notifier.new() as one, Notifier.new() as two:
        for data, fds in (
            (ENABLE, []),
            (KICK, [one]),
            (NO_KICK, []),
            (ENABLE, []),
            (KICK, [two]),
        ):
            line.send(data, *fds)
        seen = []
        for _ in range(5):
            seen.append(line.look()[1])
            line.reader.consume()
        assert seen == [[], [identity(one)], [], [], [identity(two)]]


def test_message_without_the_descriptor_that_it_needs_ends_the_connection(
    line: Line,
) -> None:
    """What it seemed to have is the next message's."""
    with Notifier.new() as one:
        line.send(KICK)
        line.send(KICK, one)
        assert line.look()[1] == [identity(one)]
        with pytest.raises(ProtocolError, match="0 descriptors"):
            line.reader.consume()


def test_message_with_a_descriptor_too_many_ends_the_connection(line: Line) -> None:
    with Notifier.new() as one:
        line.send(ENABLE, one)
        assert line.look()[1] == []
        with pytest.raises(ProtocolError, match="1 descriptors"):
            line.reader.consume()


@pytest.mark.parametrize("cut", [1, vu.Header.layout.size, len(KICK) - 1])
def test_message_in_pieces_is_read_and_marked(line: Line, cut: int) -> None:
    with Notifier.new() as one:
        line.send(KICK[:cut], one)
        assert line.reader.read() is None
        assert line.reader.in_message
        assert line.shelf.mark(Mark.IN_PIECES) == 1
        line.send(KICK[cut:])
        assert line.look() == ("SET_VRING_KICK", [identity(one)])
        assert line.shelf.mark(Mark.IN_PIECES) == 1
        line.reader.consume()
        assert line.shelf.mark(Mark.IN_PIECES) == 0
        assert not line.reader.in_message


def test_end_of_the_connection_is_seen(line: Line) -> None:
    line.send(FEATURES)
    line.front_end.close()
    assert line.look()[0] == "GET_FEATURES"
    line.reader.consume()
    with pytest.raises(EOFError):
        line.reader.read()


def test_successor_skips_the_message_that_was_served(line: Line) -> None:
    with Notifier.new() as one, Notifier.new() as two:
        line.send(KICK, one)
        line.send(KICK, two)
        line.look()
        served = line.reader.fingerprint
        # It was served and not consumed: the daemon was killed.
        successor = PeekReader(line.ours, line.shelf)
        successor.skip(served)
        message = successor.read()
        assert message is not None
        with message:
            assert [identity(fd) for fd in message.fds] == [identity(two)]
        # It was consumed, too: the next one is another message, and stays.
        line.reader = PeekReader(line.ours, line.shelf)
        line.reader.skip(served)
        assert line.look()[1] == [identity(two)]


def test_skip_waits_for_nothing(line: Line) -> None:
    line.reader.skip("of a message that was consumed")
    assert line.reader.read() is None


def test_fingerprint_is_the_messages(line: Line) -> None:
    seen = set()
    with Notifier.new() as one, Notifier.new() as two:
        for data, fds in ((KICK, [one]), (KICK, [two]), (NO_KICK, []), (ENABLE, [])):
            line.send(data, *fds)
            line.look()
            seen.add(line.reader.fingerprint)
            line.reader.consume()
        line.send(KICK, one)
        line.look()
        assert line.reader.fingerprint in seen
    assert len(seen) == 4


def test_hostile_header_is_refused(line: Line) -> None:
    line.send(b"\xff" * 12)
    with pytest.raises(ProtocolError):
        line.reader.read()
