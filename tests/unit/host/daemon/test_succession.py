# SPDX-License-Identifier: Apache-2.0
"""A daemon is killed at any moment, and its successor goes on at that point.

FrontEnd ──socket──► Server, killed at the n-th step ──socket──► QEMU
                         │ descriptors, state
                     FakeKeeper ──► the next Server

A step is each thing that another process can see, and each store into the state: the
daemon is killed before it and behind it.
"""

import gc
import json
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.agent import FakeAgent
from tests.fakes.frontend import Dropped, FrontEnd, RingAt, region
from tests.fakes.keeper import FakeKeeper
from tests.fakes.loop import ManualLoop
from tests.fakes.ports import RecordedSlave
from tests.fakes.windows import MIB
from vhostpci_host.config.device import DeviceConfig, Mode
from vhostpci_host.daemon import left_behind
from vhostpci_host.daemon.common import Common
from vhostpci_host.daemon.daemon import TICK
from vhostpci_host.daemon.directories import Directories
from vhostpci_host.daemon.server import Server
from vhostpci_host.fds import Fd, Notifier
from vhostpci_host.ivshmem import wire as ivshmem_wire
from vhostpci_host.ivshmem.linger import Linger
from vhostpci_host.keeper.slots import Mark, StateError, StateFile
from vhostpci_host.keeper.store import DescriptorStore
from vhostpci_host.memory.arena import Arena
from vhostpci_host.memory.attach import WindowIds
from vhostpci_host.vhost_user import wire
from vhostpci_host.vhost_user.peek import PeekReader
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.access import Metadata
from vhostpci_shared.ivshmem import SIZE, decode
from vhostpci_shared.metadata import DeviceFlag, Snapshot
from vhostpci_shared.vhost_user import Request

SEND = wire.send
MEMORY = 16 * MIB
SETTLED = 0.05
STEP = 0.005
"""Seconds after which QEMU reads what it was sent."""


class Killed(BaseException):
    """The daemon is killed here."""


class Steps:
    """Counts the steps of the daemon, and kills it at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.kill_at: int | None = None
        for owner, name in (
            (StateFile, "write"),
            (StateFile, "set_mark"),
            (DescriptorStore, "say"),
            (PeekReader, "consume"),
            (Metadata, "publish"),
            (Notifier, "drain"),
            (wire, "send"),
            (ivshmem_wire, "send_outgoing"),
        ):
            real = getattr(owner, name)
            monkeypatch.setattr(owner, name, self._around(real))

    def _around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(real)
        def around(*args: Any, **options: Any) -> Any:
            # Between the mark and the reply is the gap that remains (design.md).
            if real is not SEND:
                self._step()
            result = real(*args, **options)
            if Mark.REPLYING not in args:
                self._step()
            return result

        return around

    def _step(self) -> None:
        self.count += 1
        if self.count == self.kill_at:
            raise Killed


class Host:
    """A daemon with one device, its keeper, a front-end and a slave QEMU."""

    def __init__(self, directory: Path, steps: Steps, mode: Mode = Mode.ARENA) -> None:
        self.config = DeviceConfig(
            name="dev",
            mode=mode,
            memory=MEMORY if mode is Mode.ARENA else 0,
            run_dir=directory,
            memory_dir=directory,
        )
        self.steps = steps
        self.keeper = FakeKeeper()
        self.kills = 0
        self.now = 1000.0
        self.store = self.keeper.store
        self.slave: socket.socket | None = None
        self._memory: Fd | None = None
        self.qemu = RecordedSlave(self.config.vectors)
        self.start()

    def _common(self) -> Common:
        self.loop = loop = ManualLoop()
        loop.now = self.now
        daemons = {id(one) for one in (self.store._channel, *self.store.left.values())}
        self._ours = {id(one) for one in _owners()} - daemons
        self._linger = Linger(loop)
        return Common(
            loop,  # type: ignore[arg-type]
            WindowIds(256),
            self._linger,
            Directories(loop.time),
            lambda connection: connection.close(),
            keeper=self.store,
        )

    def start(self) -> None:
        """Start a daemon, which goes on with all that another one has left."""
        common = self._common()
        left = left_behind.find(self.store).get("dev")
        assert (left is None) == (self.kills == 0), "nothing was left"
        self._serve(Server(common, self.config, failed=_fail, ended=_end, left=left))

    def start_plainly(self) -> None:
        """Start a daemon that cannot use what another one has left."""
        common = self._common()
        left = left_behind.find(self.store).get("dev")
        if left is not None:
            with pytest.raises(StateError):
                self._try(common, left)
        self.store.finish_start()
        self.keeper.take()
        self._serve(Server(common, self.config, failed=_fail, ended=_end))

    def _try(self, common: Common, left: left_behind.LeftBehind) -> None:
        with ExitStack() as undo:
            undo.callback(left.file.close)
            left.check(self.config)
            undo.pop_all()
        Server(common, self.config, failed=_fail, ended=_end, left=left)

    def _serve(self, server: Server) -> None:
        self.server = server
        server.serve_control()
        self.store.finish_start()
        self.keeper.take()
        self._tick()

    def _tick(self) -> None:
        self.loop.call_later(TICK, self._tick)
        self.server.tick()

    def pass_time(self, seconds: float) -> None:
        """Let time pass; if the daemon is killed, its successor goes on at once."""
        end = self.loop.now + seconds
        while self.loop.now < end:
            try:
                self.loop.advance(STEP)
            except Killed:
                self.kill()
            self.keeper.take()
            self._read_as_qemu()

    def kill(self) -> None:
        """Kill the daemon; its successor goes on at once."""
        shown = self.server.device.store.metadata.snapshot()
        generation = self.server.device.store.metadata.generation()
        self.end()
        self.start()
        assert self.server.device.publisher.generation > generation
        # None: the daemon was killed while it wrote.
        if shown is not None and shown.device.ring_count:
            self._check_sessions(shown)

    def _check_sessions(self, before: Snapshot) -> None:
        """Check that an agent has no other session for a ring that it may run."""
        for was, ring in zip(before.rings, self.snapshot().rings, strict=True):
            if was.runs and ring.runs:
                assert ring.session == was.session, "the agent would be fenced"

    def end(self) -> None:
        """Close all that the daemon had, as the end of its process does."""
        self.kills += 1
        self.steps.kill_at = None
        store = self.server.device.store
        if isinstance(store, Arena):
            store._region.close()
        self.now = self.loop.now
        self.keeper.take()
        kept = {id(fd) for fd in self.keeper.kept.values()}
        for owner in _owners():
            if id(owner) not in self._ours | kept:
                os.close(owner.detach())
        self.store = self.keeper.replace_store()

    def keep_open(self, one: Fd | socket.socket) -> None:
        """Note that a descriptor is the test's, and not the daemon's."""
        self._ours.add(id(one))

    def connect_slave(self) -> None:
        self.slave = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.keep_open(self.slave)
        self.slave.setblocking(False)
        self.slave.connect(os.fspath(self.config.ivshmem))
        self.pass_time(SETTLED)

    def _read_as_qemu(self) -> None:
        while self.slave is not None:
            try:
                data, fds, _, _ = socket.recv_fds(self.slave, SIZE, 1)
            except BlockingIOError:
                return
            assert data, "the slave's QEMU sees a hang-up"
            self.qemu.feed(decode(data), fds[0] if fds else None)

    @property
    def memory(self) -> Fd:
        """The master's memory, as the master has it."""
        if self._memory is None:
            if self.config.mode is Mode.ARENA:
                self._memory = Fd(os.open(self.config.arena, os.O_RDWR))
            else:
                self._memory = Fd(os.memfd_create("master"))
                os.ftruncate(self._memory.fileno(), MEMORY)
            self.keep_open(self._memory)
        return self._memory

    def regions(self) -> list[tuple[vu.MemRegion, int]]:
        """The regions of the master's memory."""
        return [(region(MEMORY), self.memory.fileno())]

    def snapshot(self) -> Snapshot:
        found = self.server.device.store.metadata.snapshot()
        assert found is not None
        return found

    def close(self) -> None:
        self.server.close()
        self._linger.close()
        self.keeper.close()
        self.qemu.close()
        if self._memory is not None:
            self._memory.close()
        if self.slave is not None:
            self.slave.close()


class ToHost:
    """A front-end's transport: time passes while it waits for a reply."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        host.keep_open(self._socket)
        self._socket.setblocking(False)
        self._socket.connect(os.fspath(host.config.vhost_user))
        host.pass_time(SETTLED)

    def send(self, data: bytes, fds: Sequence[int]) -> None:
        try:
            socket.send_fds(self._socket, [data], list(fds))
        except ConnectionError as error:
            raise Dropped(str(error)) from error

    def receive(self) -> bytes:
        data = b""
        for _ in range(100):
            self._host.pass_time(0.001)
            try:
                piece = self._socket.recv(4096)
            except BlockingIOError:
                continue
            if not piece:
                raise Dropped("the back-end closed the connection")
            data += piece
            size = vu.Header.layout.size
            header = vu.Header.parse(data[:size])
            assert len(data) == size + header.size, "more than one reply"
            return data
        raise AssertionError("no reply")

    def close(self) -> None:
        self._socket.close()


def _owners() -> list[Fd | socket.socket]:
    """Return all that have descriptors in this process."""
    return [
        one
        for one in gc.get_objects()
        if isinstance(one, Fd | socket.socket) and not _closed(one)
    ]


def _closed(one: Fd | socket.socket) -> bool:
    return one.closed if isinstance(one, Fd) else one.fileno() < 0


def _fail(error: Exception) -> None:
    raise AssertionError("the device failed") from error


def _end() -> None:
    raise AssertionError("the device does not depend on one connection")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    # The keeper is in this thread.
    monkeypatch.setattr(DescriptorStore, "_wait_taken", lambda _: None)
    return Steps(monkeypatch)


def started(host: Host, undo: ExitStack) -> FrontEnd:
    """Connect a slave and a front-end, and load the front-end's driver."""
    front_end = connected(host, undo)
    front_end.driver_ok([RingAt.nth(0), RingAt.nth(1)])
    host.pass_time(SETTLED)
    return front_end


def connected(host: Host, undo: ExitStack) -> FrontEnd:
    """Connect a slave and a front-end, whose driver is not loaded yet."""
    host.connect_slave()
    front_end = FrontEnd(ToHost(host), host.regions())
    undo.enter_context(front_end)
    front_end.connect()
    host.pass_time(SETTLED)
    return front_end


def run(directory: Path, steps: Steps, kill_at: int, mode: Mode = Mode.ARENA) -> int:
    """Load and unload a master's driver twice, with the daemon killed at one step.

    Returns:
        How many steps there were.
    """
    with ExitStack() as undo:
        host = Host(directory, steps, mode)
        undo.callback(host.close)
        front_end = connected(host, undo)
        steps.count, steps.kill_at = 0, kill_at
        for _ in range(2):
            front_end.driver_ok([RingAt.nth(0), RingAt.nth(1)])
            host.pass_time(SETTLED)
            check_running(host, front_end)
            for index in range(2):
                front_end.stop_ring(index)
            host.pass_time(SETTLED)
            assert not any(ring.runs for ring in host.snapshot().rings)
        assert host.kills == int(kill_at > 0)
        return steps.count


def check_running(host: Host, front_end: FrontEnd) -> None:
    """Check that kicks reach the slave, and that its doorbells reach the master."""
    snapshot = host.snapshot()
    assert all(ring.runs for ring in snapshot.rings)
    (peer,) = {ring.call_peer for ring in snapshot.rings}
    for index, ring in enumerate(snapshot.rings):
        while host.qemu.interrupted(ring.kick_vector):
            continue
        front_end.kick(index)
        host.pass_time(0.001)
        assert host.qemu.interrupted(ring.kick_vector)
        front_end.called(index, 0)
        host.qemu.ring(peer, ring.call_vector)
        assert front_end.called(index, 0)


STRIDE = int(os.environ.get("VHOSTPCI_KILL_STRIDE", "13"))
"""How many steps lie between two at which the daemon is killed; 1 for all, by hand."""


@pytest.mark.parametrize(("mode", "offset"), [(Mode.ARENA, 1), (Mode.ATTACH, 8)])
def test_successor_goes_on_wherever_the_daemon_is_killed(
    tmp_path: Path, steps: Steps, mode: Mode, offset: int
) -> None:
    """The front-end has each answer once, and the slave each message once."""
    last = run(tmp_path, steps, 0, mode)
    for step in range(min(offset, STRIDE), last, STRIDE):
        run(tmp_path, steps, step, mode)


def test_successor_serves_a_request_that_waits_for_the_agent(
    tmp_path: Path, steps: Steps
) -> None:
    """It is still in the socket: the successor stops the rings, and waits again."""
    with ExitStack() as undo:
        host = Host(tmp_path, steps)
        undo.callback(host.close)
        front_end = started(host, undo)
        agent = FakeAgent(host.loop, host.qemu, host.memory.fileno())
        undo.callback(agent.close)
        agent.say(instance=1, generation=agent.metadata.generation())
        host.pass_time(1.0)
        agent.answers = False
        sessions = [ring.session for ring in host.snapshot().rings]
        message = vu.message(Request.GET_VRING_BASE, vu.VringState(0, 0))
        front_end.transport.send(message, ())
        host.pass_time(SETTLED)
        assert host.server.device.backend is not None
        assert host.server.device.backend.waiting
        host.kill()
        assert host.server.device.agent.present, "the front-end is not to wait for it"
        host.pass_time(SETTLED)
        assert host.server.device.backend is not None
        assert host.server.device.backend.waiting
        rings = host.snapshot().rings
        assert [ring.session for ring in rings] == sessions
        assert [ring.runs for ring in rings] == [False, True]
        agent.say(instance=1, generation=agent.metadata.generation())
        header = vu.Header.parse(front_end.transport.receive()[:12])
        assert header.request == Request.GET_VRING_BASE


def test_agent_knows_that_the_front_ends_connection_is_kept(
    tmp_path: Path, steps: Steps
) -> None:
    """Without a keeper that takes it, an agent must stop as soon as we are silent."""
    with ExitStack() as undo:
        host = Host(tmp_path, steps)
        undo.callback(host.close)
        front_end = started(host, undo)
        assert DeviceFlag.KEPT in host.snapshot().device.flags
        host.store.problem = "the keeper takes nothing"
        front_end.enable(on=False)
        host.pass_time(SETTLED)
        assert DeviceFlag.KEPT not in host.snapshot().device.flags


def test_memory_of_a_master_that_is_gone_is_kept_no_more(
    tmp_path: Path, steps: Steps
) -> None:
    """Else a machine's whole RAM stays in use until another one comes."""
    with ExitStack() as undo:
        host = Host(tmp_path, steps, Mode.ATTACH)
        undo.callback(host.close)
        front_end = started(host, undo)
        assert keeps(host, host.memory)
        front_end.close()
        host.pass_time(SETTLED)
        assert not keeps(host, host.memory)


def keeps(host: Host, memory: Fd) -> bool:
    """Whether the keeper has the memory."""
    kept = [os.fstat(one.fileno()) for one in host.keeper.kept.values()]
    return any(os.path.samestat(one, os.fstat(memory.fileno())) for one in kept)


def change_config(host: Host) -> None:
    host.config = replace(host.config, queue_pairs=2)


def change_state(host: Host) -> None:
    """Write a state as another version of the daemon would."""
    (name,) = (name for name in host.keeper.kept if name.startswith("s"))
    with closing(StateFile.left(host.keeper.kept[name].copy())) as file:
        file.read()
        file.write(b'{"name":"dev","more":1}')


def repeat_socket(host: Host) -> None:
    """Write a state that names a listening socket twice."""
    (name,) = (name for name in host.keeper.kept if name.startswith("s"))
    with closing(StateFile.left(host.keeper.kept[name].copy())) as file:
        state = json.loads(file.read())
        state["listeners"] += state["listeners"][:1]
        file.write(json.dumps(state).encode())


def lose_descriptor(host: Host) -> None:
    name = next(name for name in host.store.left if name.startswith("d"))
    host.store.left.pop(name).close()


@pytest.mark.parametrize(
    "spoil", [change_config, change_state, lose_descriptor, repeat_socket]
)
def test_what_does_not_fit_is_not_used(
    tmp_path: Path,
    steps: Steps,
    spoil: Callable[[Host], None],
) -> None:
    """The device begins without it: both ends see a hang-up, and connect again."""
    with ExitStack() as undo:
        host = Host(tmp_path, steps)
        undo.callback(host.close)
        front_end = started(host, undo)
        host.end()
        spoil(host)
        host.start_plainly()
        with pytest.raises(Dropped):
            front_end.ask(Request.GET_FEATURES)
        assert host.slave is not None
        with host.slave:
            assert host.slave.recv(SIZE) == b""
        host.slave = None
        undo.enter_context(FrontEnd(ToHost(host), host.regions())).connect()
