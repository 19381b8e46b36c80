# SPDX-License-Identifier: Apache-2.0
"""The agent as an ivshmem client of a fake server."""

import mmap
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.clock import Clock
from tests.fakes.ivshmem_server import SIZE, FakeServer
from vhostpci_guest.errors import Unusable
from vhostpci_guest.eventfds import drain, new_eventfd, signal
from vhostpci_guest.interfaces import Device, Eventfd
from vhostpci_guest.socket.client import (
    HANDSHAKE,
    MAX_DOORBELLS,
    RETRY,
    Client,
    ServerGone,
)
from vhostpci_guest.socket.source import PATIENCE, SocketSource
from vhostpci_shared import ivshmem
from vhostpci_shared import metadata as md
from vhostpci_shared.wire import ProtocolError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net0.ivshmem"


@pytest.fixture
def server(path: Path) -> Iterator[FakeServer]:
    server = FakeServer(path)
    yield server
    server.close()


@pytest.fixture
def client(server: FakeServer, path: Path) -> Iterator[Client]:
    client = Client(path)
    server.accept()
    yield client
    client.close()


@pytest.fixture
def connected(server: FakeServer, client: Client) -> Client:
    """A client past the handshake, with three vectors."""
    server.greet(vectors=3)
    client.receive()
    return client


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source(path: Path, clock: Clock) -> SocketSource:
    return SocketSource(path, clock)


def greeted(source: SocketSource, server: FakeServer) -> Device:
    """Let the daemon greet the source, and return the source's device."""
    source.look()
    server.accept()
    server.greet()
    source.look()
    (device,) = source.devices()
    return device


def test_handshake_gives_a_device(server: FakeServer, client: Client) -> None:
    server.greet(vectors=3)
    client.receive()
    assert client.connected
    assert client.window.id == md.SLAVE_ID
    assert client.window.size == SIZE
    assert client.vector_count == 3


def test_server_recognizes_an_agent_by_the_name_of_its_socket(
    server: FakeServer, client: Client
) -> None:
    assert isinstance(server.client_name, bytes)
    assert server.client_name.startswith(b"\0")


def test_server_knows_by_the_name_that_an_agent_takes_kicks(
    server: FakeServer, client: Client
) -> None:
    assert server.client_name.startswith(ivshmem.TAKES_KICKS)
    other = Client(Path(client.name))
    before = server.client_name
    server.accept()
    assert server.client_name != before, "a second agent could not bind that name"
    other.close()


def test_window_is_the_servers_memory(server: FakeServer, connected: Client) -> None:
    connected.window.view[7] = 42
    assert server.mapping.view[7] == 42


def test_windows_file_can_be_mapped_by_another_process_until_the_close(
    server: FakeServer, client: Client
) -> None:
    server.greet()
    client.receive()
    file = client.window.file
    assert file is not None
    assert file.offset == 0
    assert not os.get_inheritable(file.fd)
    with mmap.mmap(file.fd, client.window.size) as theirs:
        theirs[7] = 42
        assert server.mapping.view[7] == 42
        client.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file.fd)
        theirs[8] = 43  # a mapping does not end with the descriptor
        assert server.mapping.view[8] == 43


def test_vector_is_signalled_by_the_server(
    server: FakeServer, connected: Client
) -> None:
    signal(server.vectors[2])
    vector = connected.vector(2)
    assert vector is not None
    assert drain(vector)
    assert connected.vector(3) is None


def test_programs_that_we_start_inherit_no_descriptor(connected: Client) -> None:
    ours = [connected.vector(index) for index in range(connected.vector_count)]
    assert not any(fd is None or os.get_inheritable(fd) for fd in ours)


def test_doorbell_rings_at_the_peer(server: FakeServer, connected: Client) -> None:
    connected.ring(md.DAEMON_PEER, 0)
    assert server.rung(server.doorbell)


def test_doorbell_outlives_its_peer(server: FakeServer, client: Client) -> None:
    server.greet()
    (ours,) = server.introduce(2)
    client.receive()
    doorbell = client.doorbell(2, 0)
    server.say(2)
    client.receive()
    assert isinstance(doorbell, Eventfd)
    signal(doorbell.fd)
    os.close(doorbell.fd)
    assert server.rung(ours)
    assert client.doorbell(2, 0) is None


def introduce_socket(server: FakeServer) -> socket.socket:
    """Introduce peer 2 whose doorbell is a socket; return the master's end."""
    theirs, ours = socket.socketpair()
    server.say(2, theirs.fileno())
    theirs.close()
    return ours


def test_socket_is_rung_as_a_doorbell(server: FakeServer, connected: Client) -> None:
    with introduce_socket(server) as master:
        connected.receive()
        connected.ring(2, 0)
        assert master.recv(9) == (1).to_bytes(8, "little")


@pytest.mark.timeout(20)
def test_full_socket_that_the_master_made_blocking_is_rung_without_waiting(
    server: FakeServer, connected: Client
) -> None:
    with introduce_socket(server) as master:
        connected.receive()
        doorbell = connected.doorbell(2, 0)
        assert isinstance(doorbell, Eventfd)
        with suppress(BlockingIOError):
            while True:
                os.write(doorbell.fd, bytes(4096))
        os.set_blocking(doorbell.fd, True)
        connected.ring(2, 0)
        master.close()
        connected.ring(2, 0)  # nor is it an error that the master has ended
        os.close(doorbell.fd)


def test_peers_come_at_run_time(server: FakeServer, connected: Client) -> None:
    assert connected.doorbell(2, 1) is None
    ours = server.introduce(2, 2)
    connected.receive()
    connected.ring(2, 1)
    assert [server.rung(fd) for fd in ours] == [False, True]


def test_doorbell_rung_too_early_rings_when_the_peer_comes(
    server: FakeServer, client: Client
) -> None:
    client.ring(7, 0)
    server.greet()
    (ours,) = server.introduce(7)
    client.receive()
    assert server.rung(ours)


def test_message_in_pieces_is_put_together(server: FakeServer, client: Client) -> None:
    server.say(ivshmem.VERSION)
    server.say(md.SLAVE_ID)
    memory = ivshmem.encode(ivshmem.SHARED_MEMORY)
    server.say_bytes(memory[:3], server.memory)
    client.receive()
    assert not client.connected
    server.say_bytes(memory[3:])
    client.receive()
    assert client.connected


def test_rest_of_a_message_is_read_apart_from_the_next_message(
    server: FakeServer, client: Client
) -> None:
    version = ivshmem.encode(ivshmem.VERSION)
    server.say_bytes(version[:3])
    client.receive()
    server.say_bytes(version[3:] + ivshmem.encode(md.SLAVE_ID))
    server.say(ivshmem.SHARED_MEMORY, server.memory)
    client.receive()
    assert client.connected


def test_messages_that_come_together_are_taken_apart(
    server: FakeServer, client: Client
) -> None:
    start = ivshmem.encode(ivshmem.VERSION) + ivshmem.encode(md.SLAVE_ID)
    server.say_bytes(start)
    server.say(ivshmem.SHARED_MEMORY, server.memory)
    client.receive()
    assert client.connected


def test_further_descriptors_of_a_message_are_closed(
    server: FakeServer, client: Client
) -> None:
    server.greet()
    extra = new_eventfd()
    server.say(2, server.doorbell, extra, extra)
    client.receive()
    os.close(extra)
    client.ring(2, 0)
    assert server.rung(server.doorbell)  # and the leak check sees the rest


def test_device_is_lost_when_the_server_closes_the_connection(
    server: FakeServer, client: Client
) -> None:
    server.greet()
    server.hang_up()
    with pytest.raises(ServerGone):
        client.receive()
    assert client.window.view[0] == 0  # the memory stays until `close`


def test_descriptor_that_cannot_be_mapped_is_refused_as_memory(
    server: FakeServer, client: Client
) -> None:
    server.say(ivshmem.VERSION)
    server.say(md.SLAVE_ID)
    fd = new_eventfd()
    server.say(ivshmem.SHARED_MEMORY, fd)
    os.close(fd)
    with pytest.raises(ProtocolError, match="no memory file"):
        client.receive()


def test_empty_memory_is_refused(server: FakeServer, client: Client) -> None:
    server.say(ivshmem.VERSION)
    server.say(md.SLAVE_ID)
    os.ftruncate(server.memory, 0)
    server.say(ivshmem.SHARED_MEMORY, server.memory)
    with pytest.raises(ProtocolError, match="no memory file"):
        client.receive()


def test_number_of_doorbells_is_limited(server: FakeServer, connected: Client) -> None:
    connected._vectors.extend([server.doorbell] * MAX_DOORBELLS)
    server.introduce(2)
    with pytest.raises(ProtocolError, match="over 1024"):
        connected.receive()
    del connected._vectors[3:]


def test_limit_of_doorbells_may_be_reached_and_not_exceeded(
    server: FakeServer, connected: Client
) -> None:
    kept = connected.vector_count + sum(map(len, connected._peers.values()))
    connected._vectors.extend([server.doorbell] * (MAX_DOORBELLS - 1 - kept))
    server.introduce(2)
    connected.receive()
    server.introduce(3)
    with pytest.raises(ProtocolError, match="over 1024"):
        connected.receive()
    del connected._vectors[3:]


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=12))
def test_any_messages_are_taken_or_refused(
    tmp_path_factory: pytest.TempPathFactory, messages: list[tuple[int, bool]]
) -> None:
    path = tmp_path_factory.mktemp("s") / "s"
    server = FakeServer(path)
    client = Client(path)
    server.accept()
    for message, with_fd in messages:
        server.say(message, *([server.memory] if with_fd else []))
    server.hang_up()
    with pytest.raises((ProtocolError, ServerGone)):
        client.receive()
    client.close()
    server.close()


def test_source_waits_for_a_daemon(
    path: Path, source: SocketSource, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        source.look()
        clock.seconds += RETRY
    assert caplog.text.count("trying again every second") == 1
    server = FakeServer(path)
    device = greeted(source, server)
    assert device.vector_count == 3
    device.close()
    server.close()


def test_source_reconnects_to_a_restarted_daemon(
    server: FakeServer, source: SocketSource, clock: Clock
) -> None:
    first = greeted(source, server)
    server.hang_up()
    source.look()
    assert list(source.devices()) == []
    assert source.interval == RETRY
    first.close()
    clock.seconds += RETRY
    second = greeted(source, server)
    assert second is not first
    second.close()


def refuse(source: SocketSource, server: FakeServer, message: int) -> None:
    """Have the source connect, and refuse it."""
    source.look()
    server.accept()
    server.say(message)
    source.look()


def test_source_ends_if_another_agent_keeps_the_place(
    server: FakeServer, source: SocketSource, clock: Clock
) -> None:
    for _ in range(int(PATIENCE / RETRY)):
        refuse(source, server, ivshmem.REFUSED)
        clock.seconds += RETRY
    with pytest.raises(Unusable, match="another slave is connected"):
        refuse(source, server, ivshmem.REFUSED)


def test_source_takes_the_place_of_an_agent_that_hung(
    server: FakeServer, source: SocketSource, clock: Clock
) -> None:
    for _ in range(5):
        refuse(source, server, ivshmem.REFUSED)
        clock.seconds += RETRY
    greeted(source, server).close()


def test_source_waits_for_a_daemon_without_descriptors(
    server: FakeServer, source: SocketSource, clock: Clock
) -> None:
    for _ in range(100):
        refuse(source, server, ivshmem.EXHAUSTED)
        clock.seconds += RETRY
    greeted(source, server).close()


def test_source_keeps_trying_if_a_later_daemon_refuses_us(
    server: FakeServer, source: SocketSource, clock: Clock
) -> None:
    device = greeted(source, server)
    server.hang_up()
    source.look()
    device.close()
    clock.seconds += RETRY
    source.look()
    server.accept()
    server.say(ivshmem.REFUSED)
    source.look()
    assert source.interval == RETRY


def test_connection_to_a_silent_server_is_given_up(
    server: FakeServer, source: SocketSource, clock: Clock
) -> None:
    source.look()
    assert source.interval == HANDSHAKE
    clock.seconds += HANDSHAKE
    with pytest.raises(Unusable, match="no handshake"):
        source.look()
    assert list(source.fds()) == []


def test_path_that_is_no_socket_ends_the_source(
    path: Path, source: SocketSource
) -> None:
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagrams.bind(str(path))
    with pytest.raises(Unusable, match=str(path)):
        source.look()
    datagrams.close()
