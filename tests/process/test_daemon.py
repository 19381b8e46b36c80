# SPDX-License-Identifier: Apache-2.0
"""`vhostpci-host run` as a process, over its real sockets.

FrontEnd ──NAME.vhost-user──► daemon ◄──NAME.ivshmem── SlaveClient
(master's QEMU)                 │                      (slave's QEMU)
                             NAME.control ◄── vhostpci-host status, qemu-args
"""

import contextlib
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.fakes.frontend import (
    Dropped,
    FrontEnd,
    Refused,
    RingAt,
    Socket,
    region,
)
from tests.fakes.slave_client import SlaveClient
from tests.process.program import DaemonProgram, ask_status, new_log, run
from tests.process.shared import Shared
from tests.waiting import TIMEOUT, wait_for
from vhostpci_shared import metadata as md
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request
from vhostpci_shared.wire import ProtocolError

MIB = 1 << 20
MEMORY = 16 * MIB
RX = RingAt.nth(0)


class Host(DaemonProgram):
    """`vhostpci-host run NAME`, and the other commands for that device."""

    def __init__(self, directory: Path, *options: str, name: str = "dev") -> None:
        self.name, self.directory = name, directory
        self.run_dir, self.memory_dir = directory / "run", directory / "memory"
        self._directories = [
            *("--run-dir", str(self.run_dir), "--memory-dir", str(self.memory_dir))
        ]
        command = [*self._command("run"), "--memory", "16M", *self._directories[2:]]
        super().__init__([*command, *options], new_log(directory), fds=_given(options))

    def _command(self, command: str) -> list[str]:
        return [
            *(sys.executable, "-W", "error", "-m", "vhostpci_host", command, self.name),
            *self._directories[:2],
        ]

    def ready(self) -> Self:
        """Wait until it serves."""
        self.wait_log("waiting for the master")
        return self

    def path(self, kind: str) -> Path:
        return self.run_dir / f"{self.name}.{kind}"

    @property
    def arena(self) -> Path:
        return self.memory_dir / self.name

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another of vhostpci-host's commands on this device."""
        name, *rest = arguments
        return run(*self._command(name), *rest)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = ask_status(self.run_dir, self.name)
        return status

    def wait_state(self, state: str) -> None:
        wait_for(lambda: self.status()["state"] == state, self.status)

    def files(self) -> list[str]:
        """Return the names of what it has in its two directories."""
        return sorted(
            path.name
            for directory in (self.run_dir, self.memory_dir)
            for path in directory.iterdir()
        )

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Fail a test that leaves a master, a slave or files, or that ends the daemon.

        Inside the block the log holds only what is logged from now on.
        """
        before = self.files()
        self.start_log_here()
        yield
        assert self.process.poll() is None, self.log
        self.wait_idle()
        assert self.files() == before

    def wait_idle(self) -> None:
        """Wait until neither a master nor a slave is connected."""
        wait_for(self._idle, lambda: f"no master and no slave: {self.status()}")

    def _idle(self) -> bool:
        status = self.status()
        return status["state"] == "no master" and status["slave"] is None


def _given(options: tuple[str, ...]) -> list[int]:
    return [int(options[options.index("--fd") + 1])] if "--fd" in options else []


@pytest.fixture
def directory() -> Iterator[Path]:
    """A place on tmpfs, with a short name: a socket's path has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vhp-", dir="/dev/shm") as name:
        yield Path(name)


@contextlib.contextmanager
def running(directory: Path, *options: str, name: str = "dev") -> Iterator[Host]:
    host = Host(directory, *options, name=name)
    try:
        yield host
    finally:
        host.close()


@pytest.fixture
def host(directory: Path) -> Iterator[Host]:
    """A daemon of the test's own, which it ends, or in whose metadata it writes."""
    with running(directory) as host:
        yield host.ready()


@contextlib.contextmanager
def ready() -> Iterator[Host]:
    """Start a daemon in a directory that is removed afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="vhp-", dir="/dev/shm") as name,
        running(Path(name)) as host,
    ):
        yield host.ready()


@pytest.fixture(scope="module")
def hosts() -> Iterator[Shared[Host]]:
    """One daemon for the tests that only connect to it and disconnect."""
    with Shared(ready, Host.unchanged) as hosts:
        yield hosts


@pytest.fixture
def shared(hosts: Shared[Host]) -> Iterator[Host]:
    """That daemon; a test that leaves something connected to it fails."""
    with hosts.lent() as host:
        yield host


@contextlib.contextmanager
def master(host: Host, **options: Any) -> Iterator[FrontEnd]:
    """A stock QEMU whose memory is the arena, connected."""
    memory = os.open(host.arena, os.O_RDWR)
    transport = Socket(host.path("vhost-user"))
    try:
        with FrontEnd(transport, [(region(MEMORY), memory)], **options) as front_end:
            front_end.connect()
            yield front_end
    finally:
        os.close(memory)


@contextlib.contextmanager
def slave(host: Host) -> Iterator[SlaveClient]:
    client = SlaveClient(host.path("ivshmem"))
    try:
        yield client.handshake()
    finally:
        client.close()


def test_master_and_slave_connect_exchange_signals_and_disconnect(shared: Host) -> None:
    with slave(shared) as client, master(shared) as qemu:
        qemu.driver_ok([RX, RingAt.nth(1)])
        shared.wait_log("started rings [0, 1]")
        client.catch_up()
        assert client.interrupted(0)
        assert client.interrupted(1)
        with client.metadata() as metadata:
            snapshot = metadata.snapshot()
            assert snapshot is not None
            ring = snapshot.rings[1]
            assert ring.runs
        assert qemu.called(1)
        os.eventfd_write(client.peers[ring.call_peer][ring.call_vector], 1)
        assert qemu.called(1)
        qemu.kick(1)
        assert client.interrupted(2)
        assert [qemu.stop_ring(0), qemu.stop_ring(1)] == [0, 0]
    shared.wait_log("slave disconnected")


def test_daemon_that_ends_drops_the_master_and_leaves_only_its_memory(
    host: Host,
) -> None:
    with slave(host), master(host) as qemu:
        qemu.driver_ok([RX])
        assert host.end() == 0
        with pytest.raises(Dropped):
            qemu.stop_ring(0)
    assert list(host.run_dir.iterdir()) == []
    assert list(host.memory_dir.iterdir()) == [host.memory_dir / host.name]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_end_the_daemon_end_it_cleanly_and_at_once(
    host: Host, number: signal.Signals
) -> None:
    assert host.end_within(1.0, number) == 0
    assert list(host.run_dir.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_signals_without_a_meaning_are_ignored(
    host: Host, number: signal.Signals
) -> None:
    host.send(number)
    host.wait_log(f"{number.name} is ignored")
    assert host.status()["state"] == "no master"


def test_signal_for_a_successor_is_ignored_without_a_keeper(directory: Path) -> None:
    with running(directory, "--keeper", "none") as host:
        host.ready().send(signal.SIGUSR2)
        host.wait_log("SIGUSR2 is ignored")
        assert host.status()["state"] == "no master"


def test_descriptors_do_not_grow_with_sessions(shared: Host) -> None:
    with slave(shared), master(shared):
        pass  # the first session may open what stays open
    shared.wait_idle()
    before = shared.descriptors()
    for _ in range(12):
        with slave(shared) as client, master(shared) as qemu:
            for _ in range(3):
                qemu.driver_ok([RX, RingAt.nth(1)])
                time.sleep(0.03)
                qemu.stop_ring(0)
            client.catch_up()
    # The daemon may take a moment to close those of the last session.
    wait_for(lambda: shared.descriptors() <= before + 1, shared.open_files)


def test_second_slave_is_refused_and_the_first_stays_connected(shared: Host) -> None:
    with (
        slave(shared),
        contextlib.closing(SlaveClient(shared.path("ivshmem"))) as second,
    ):
        with pytest.raises(ProtocolError, match="another slave"):
            second.read()
        shared.wait_log("refused")
        assert shared.status()["slave"]["pid"] == os.getpid()


def test_second_master_is_disconnected_and_the_first_stays_connected(
    shared: Host,
) -> None:
    with master(shared) as first:
        second = Socket(shared.path("vhost-user"))
        with pytest.raises(Dropped):
            second.receive()
        second.close()
        first.ask(Request.GET_FEATURES)


def test_master_may_reconnect_before_the_daemon_sees_it_disconnect(
    shared: Host,
) -> None:
    for _ in range(30):
        with master(shared) as qemu:
            qemu.driver_ok([RX])


def test_master_may_reconnect_while_the_daemon_waits_for_the_agent(
    host: Host,
) -> None:
    """Its socket is not read meanwhile, so the daemon has not seen it close.

    With a separate daemon: what the test writes as an agent stays in the metadata.
    """
    with slave(host) as client, client.metadata() as metadata:
        with master(host) as qemu:
            qemu.driver_ok([RX])
            for beat in range(4):
                agent = md.Agent(instance=1, heartbeat=beat, state=md.AgentState.READY)
                metadata.write_agent(agent)
                os.eventfd_write(client.peers[md.DAEMON_PEER][0], 1)
                time.sleep(0.05)
            request = vu.message(Request.GET_VRING_BASE, vu.VringState(0, 0))
            qemu.transport.send(request, ())
            host.wait_state("stopping")
        with master(host):
            assert host.status()["master"]


def test_slave_may_disconnect_and_reconnect(shared: Host) -> None:
    with master(shared) as qemu:
        qemu.driver_ok([RX])
        # The daemon may serve a slave between two messages: a new call is a new peer.
        qemu.ask(Request.GET_FEATURES)
        for _ in range(5):
            with slave(shared) as client:
                client.catch_up()
                assert max(client.peers) == md.FIRST_CALL_PEER


def test_memory_that_is_not_the_arena_is_refused_with_the_argument(
    shared: Host,
) -> None:
    with master(shared) as qemu:
        stray = os.memfd_create("stray")
        os.ftruncate(stray, MEMORY)
        qemu.regions = [(region(MEMORY), stray)]
        with pytest.raises(Refused):
            qemu.driver_ok([RX])
        os.close(stray)
    shared.wait_log("is not the arena")
    shared.wait_log("share=on")


def test_memory_that_reaches_into_the_metadata_is_refused(shared: Host) -> None:
    with master(shared) as qemu:
        size = qemu_window(shared) - md.SIZE
        qemu.regions = [(region(size), qemu.regions[0][1])]
        qemu.set_memory()
        qemu.regions = [(region(size + 4096), qemu.regions[0][1])]
        with pytest.raises(Refused):
            qemu.set_memory()
    shared.wait_log("reaches into the metadata")


def qemu_window(host: Host) -> int:
    window: int = host.status()["memory"]["window"]
    return window


def test_private_memory_is_refused_with_the_argument(shared: Host) -> None:
    """share=off still sends descriptors, and no packet would ever arrive."""
    with master(shared) as qemu:
        fd = qemu.regions[0][1]
        with mmap.mmap(fd, MEMORY, flags=mmap.MAP_PRIVATE), pytest.raises(Refused):
            qemu.set_memory()
    shared.wait_log("maps the arena")
    shared.wait_log("share=on")


def test_memory_that_the_front_end_maps_shared_is_accepted(shared: Host) -> None:
    with master(shared) as qemu:
        fd = qemu.regions[0][1]
        with mmap.mmap(fd, MEMORY, flags=mmap.MAP_SHARED):
            qemu.set_memory()


def test_same_protocol_error_three_times_is_logged_once(
    shared: Host,
) -> None:
    for _ in range(3):
        transport = Socket(shared.path("vhost-user"))
        transport.send(b"\xff" * 12, ())
        with pytest.raises(Dropped):
            transport.receive()
        transport.close()
    shared.wait_state("no master")
    shared.wait_log("vhost-user message of version 3, not 1")
    assert shared.said("dropped") == 1


def test_daemon_closes_descriptors_that_no_message_needs(shared: Host) -> None:
    before = shared.descriptors()
    files = [os.eventfd(0) for _ in range(9)]
    for count in (8, 9):
        transport = Socket(shared.path("vhost-user"))
        data = vu.message(Request.GET_FEATURES)
        transport.send(data, files[:count])
        with pytest.raises(Dropped):
            transport.receive()
        transport.close()
    for fd in files:
        os.close(fd)
    wait_for(lambda: shared.descriptors() <= before + 1, shared.open_files)


def test_message_may_come_in_pieces(shared: Host) -> None:
    with master(shared) as qemu:
        transport = qemu.transport
        assert isinstance(transport, Socket)
        data = vu.message(Request.SEND_RARP, vu.U64(1)) + vu.message(
            Request.GET_FEATURES
        )
        for byte in data:
            transport.socket.send(bytes([byte]))
            time.sleep(0.001)
        assert vu.U64.parse(transport.receive()[12:]).value


def test_second_daemon_of_a_name_fails_and_the_first_still_serves(shared: Host) -> None:
    with running(shared.directory) as second:
        assert second.wait() == 1
        assert "in use" in second.log
    assert shared.status()["state"] == "no master"


def test_second_daemon_of_an_arena_fails_in_another_run_dir_too(shared: Host) -> None:
    other = ("--run-dir", str(shared.directory / "other"))
    with running(shared.directory, *other) as second:
        assert second.wait() == 1
        assert "in use by another vhostpci-host" in second.log


def test_daemon_uses_the_sockets_and_the_arena_of_a_killed_one(directory: Path) -> None:
    with running(directory) as first:
        first.ready()
        inode = first.arena.stat().st_ino
        first.end(signal.SIGKILL)
        assert first.path("vhost-user").is_socket()
    with running(directory) as second:
        second.ready()
        assert second.arena.stat().st_ino == inode
        assert second.end() == 0


def test_slave_that_outlives_its_daemon_does_not_block_the_next_daemon(
    directory: Path,
) -> None:
    """It still has the arena open, so no lock may belong to that open file."""
    with running(directory) as first, slave(first.ready()):
        first.end(signal.SIGKILL)
        with running(directory) as second:
            second.ready()


def test_control_socket_is_open_to_the_daemons_user_only(directory: Path) -> None:
    with running(directory, "--socket-mode", "0666") as host:
        assert host.ready().path("control").stat().st_mode & 0o777 == 0o600


def test_status_shows_the_master_the_slave_and_the_rings(shared: Host) -> None:
    with slave(shared), master(shared) as qemu:
        qemu.driver_ok([RX])
        shared.wait_state("no agent")
        status = json.loads(shared.command("status", "-j").stdout)
        assert "NET_F_MRG_RXBUF" in status["master"]["features"]
        assert "REPLY_ACK" in status["master"]["protocol_features"]
        assert status["master"]["regions"][0]["size"] == MEMORY
        assert status["rings"][0]["state"] == "running"
        assert status["rings"][0]["size"] == 256
        text = shared.command("status").stdout
        assert "dev: no agent" in text
        assert f"pid {os.getpid()}" in text


def test_status_without_a_daemon_is_an_error_of_one_line(directory: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "vhostpci_host", "status", "none"),
            *("--run-dir", str(directory)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("vhostpci-host: no daemon at ")
    assert done.stderr.count("\n") == 1


def test_qemu_args_are_the_same_with_and_without_the_daemon(host: Host) -> None:
    with_daemon = host.command("qemu-args", "--role", "master", "--json")
    memory = ("--memory", "16M", "--memory-dir", str(host.memory_dir))
    host.end()
    without = host.command("qemu-args", "--role", "master", "--json", *memory)
    assert json.loads(with_daemon.stdout) == json.loads(without.stdout)


def test_sockets_and_arena_have_the_mode_of_the_option(directory: Path) -> None:
    with running(directory, "--socket-mode", "0666") as host:
        host.ready()
        for path in (host.path("vhost-user"), host.path("ivshmem"), host.arena):
            assert path.stat().st_mode & 0o777 == 0o666


def test_daemon_of_an_inherited_connection_ends_with_it(directory: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs, running(directory, "--fd", str(theirs.fileno())) as host:
        host.ready()
        theirs.close()
        transport = Socket.__new__(Socket)
        transport.socket = ours
        ours.settimeout(TIMEOUT)
        transport.send(vu.message(Request.GET_FEATURES), ())
        assert transport.receive()
        transport.close()
        assert host.wait() == 0
    assert list(host.run_dir.iterdir()) == []


def test_inherited_listener_is_served(directory: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path = directory / "given"
    listener.bind(os.fspath(path))
    listener.listen()
    with listener, running(directory, "--fd", str(listener.fileno())) as host:
        host.ready()
        for _ in range(2):
            transport = Socket(path)
            transport.send(vu.message(Request.GET_FEATURES), ())
            assert transport.receive()
            transport.close()
        assert host.end() == 0


@pytest.mark.parametrize(
    "line", [b"", b"nonsense", b"[]", b'{"command": []}', b'{"command": "dance"}']
)
def test_control_socket_answers_any_line(shared: Host, line: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.settimeout(TIMEOUT)
        control.connect(os.fspath(shared.path("control")))
        control.sendall(line + b"\n")
        answer = json.loads(control.makefile("rb").readline())
    assert not answer["ok"]
    assert answer["error"]


def test_control_line_without_end_is_dropped(shared: Host) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.settimeout(TIMEOUT)
        control.connect(os.fspath(shared.path("control")))
        with contextlib.suppress(ConnectionError):
            control.sendall(b"x" * 1_000_000)
            assert not control.recv(100)
    assert shared.status()["state"] == "no master"
