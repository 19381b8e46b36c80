# SPDX-License-Identifier: Apache-2.0
"""A daemon's device in this process, with a second device beside it that must not care.

hostile front-end ──socket──► Server "dev" ◄──socket── hostile slave
                                 │  same loop, linger, window numbers
good front-end ────socket──► Server "other" ◄──socket── good slave
"""

import itertools
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from tests.descriptors import open_descriptors
from tests.fakes.frontend import Dropped, FrontEnd, RingAt, region
from tests.fakes.keeper import FakeKeeper
from tests.fakes.loop import ManualLoop
from tests.fakes.ports import RecordedSlave
from tests.fakes.windows import MIB
from vhostpci_host import sockets
from vhostpci_host.config.device import DeviceConfig, Mode
from vhostpci_host.daemon.common import Common
from vhostpci_host.daemon.daemon import TICK
from vhostpci_host.daemon.directories import Directories
from vhostpci_host.daemon.left_behind import LeftBehind
from vhostpci_host.daemon.server import Server
from vhostpci_host.device.status import describe, row
from vhostpci_host.fds import Fd
from vhostpci_host.ivshmem.linger import LINGER, Linger
from vhostpci_host.keeper.store import DescriptorStore
from vhostpci_host.memory import process_maps
from vhostpci_host.memory.attach import WindowIds
from vhostpci_shared import ivshmem
from vhostpci_shared import metadata as md
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request

MEMORY = 2 * MIB
POOL, SHARED, WHOLE = 16 * MIB, 32 * MIB, 1024 * MIB
"""Of a confined device: the smallest bounce pool, the shared region, all memory."""
SETTLED = 0.05
_numbers = itertools.count()
PATIENCE = 12.0
"""Seconds of the loop's time in which a good front-end must be served.

A process that has connected again and again waits for two, a front-end that hangs has
its place for five, and a silent agent is waited for once.
"""


class World:
    """What is the same for all inputs: the loop, a directory, and a second device."""

    def __init__(self, *, other: bool = True) -> None:
        self.undo = ExitStack()
        made = tempfile.TemporaryDirectory(prefix="vhostpci-fuzz-", dir="/dev/shm")
        self.directory = Path(self.undo.enter_context(made))
        self._ids = WindowIds(256)
        self.new_loop()
        self._patch()
        if other:
            self._start_other()

    def new_loop(self) -> None:
        """Begin with a new loop, as the next daemon does."""
        self.loop = ManualLoop()
        self.linger = Linger(self.loop)
        self._directories = Directories(self.loop.time)

    def _patch(self) -> None:
        """Leave out what depends on other processes, and on the machine's time."""
        # The keeper is in this thread: it takes nothing while a daemon waits.
        self.undo.enter_context(patch(DescriptorStore, "_wait_taken", _do_nothing))
        # This process maps the whole arena, which no front-end does.
        # One that goes by the time it takes would make each run of an input another.
        self.undo.enter_context(patch(process_maps, "read_with_limit", _read))
        # It ends with us, however we end.
        peer = subprocess.Popen(
            ["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        assert peer.stdin is not None
        self.undo.callback(peer.stdin.close)
        self.undo.callback(peer.wait)
        self.undo.callback(peer.kill)
        self.undo.enter_context(patch(sockets, "peer_pid", lambda _: peer.pid))

    def _start_other(self) -> None:
        """Start the second device, with a front-end and a slave that behave."""
        self.other = Host(self, "other")
        self.undo.callback(self.other.close)
        self._slave = Slave(self.other)
        self.undo.callback(self._slave.close)
        self._front_end = self.other.start_front_end()
        self.undo.callback(self._front_end.close)
        self._slave.read()
        self.other.pass_time(SETTLED)  # only then the daemon gives its calls to it
        self.check_other()

    def common(self, store: DescriptorStore | None) -> Common:
        """Return what the devices have in common."""
        return Common(
            self.loop,  # type: ignore[arg-type]
            self._ids,
            self.linger,
            self._directories,
            lambda connection: connection.close(),
            keeper=store,
        )

    def check_other(self) -> None:
        """Check that the second device answers, and that its kicks arrive."""
        self._front_end.ask(Request.GET_FEATURES)
        self._slave.read()
        while self._slave.qemu.interrupted(2):
            continue
        self._front_end.kick(1)
        self.loop.advance()
        assert self._slave.qemu.interrupted(2), "a kick of the other device is lost"

    def close(self) -> None:
        """Close everything, and remove the directory."""
        self.linger.close()
        self.undo.close()


def _read(path: Path) -> str | None:
    with suppress(OSError):
        return path.read_text()
    return None


def _do_nothing(_: DescriptorStore) -> None:
    return


@contextmanager
def patch(owner: object, name: str, value: object) -> Iterator[None]:
    """Replace an attribute for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    yield
    setattr(owner, name, before)


class Host:
    """One device with its sockets.

    Args:
        world: that it is in.
        name: of the device.
        attach: whether the master brings its memory.
        keeper: whether what a successor needs is kept.
        queue_pairs: of the device.
        confined: whether its slave has the shared region only.
    """

    def __init__(
        self,
        world: World,
        name: str = "dev",
        *,
        attach: bool = False,
        keeper: FakeKeeper | None = None,
        queue_pairs: int = 1,
        confined: bool = False,
        left: LeftBehind | None = None,
    ) -> None:
        self.world = world
        self.loop = world.loop
        self.keeper = keeper
        self.failures: list[Exception] = []
        self.clients: list[socket.socket] = []
        self.config = self.configuration(
            world, name, attach=attach, pairs=queue_pairs, confined=confined
        )
        self.size = SHARED if confined else MEMORY
        self.server = Server(
            world.common(keeper.store if keeper else None),
            self.config,
            failed=self.failures.append,
            ended=_not_alone,
            left=left,
        )
        self.server.serve_control()
        self.memory = self._open_memory()
        self._timer = self.loop.call_later(TICK, self._tick)

    @staticmethod
    def configuration(
        world: World, name: str, *, attach: bool, pairs: int = 1, confined: bool = False
    ) -> DeviceConfig:
        """Return the configuration of a device."""
        return DeviceConfig(
            name=name,
            mode=Mode.ATTACH if attach else Mode.ARENA,
            memory=0 if attach else WHOLE if confined else MEMORY,
            confined=POOL if confined else None,
            queue_pairs=pairs,
            run_dir=world.directory,
            memory_dir=world.directory,
        )

    def _open_memory(self) -> Fd:
        """Open the memory of a master that behaves."""
        if self.config.mode is Mode.ARENA:
            return Fd(os.open(self.config.arena, os.O_RDWR))
        memory = os.memfd_create("master")
        os.ftruncate(memory, self.size)
        return Fd(memory)

    def _tick(self) -> None:
        self._timer = self.loop.call_later(TICK, self._tick)
        self.server.tick()
        if self.keeper is not None:
            self.keeper.take()

    def pass_time(self, seconds: float = 0.0) -> None:
        """Let time pass; the device must not have failed."""
        self.loop.advance(seconds)
        if self.keeper is not None:
            self.keeper.take()
        if self.failures:
            raise self.failures[0]

    def check_shown(self) -> None:
        """Check that a confined device shows the shared region or nothing."""
        if self.config.confined is None:
            return
        device = self.server.device
        # A file of a front-end that has gone may still be shown for a moment.
        assert {file.size for file in device.store.files.values()} <= {SHARED}
        # Not by the metadata: the slave may have written anything there.
        placed = device.setup.memory.regions if device.setup else ()
        found = [(one.region.size, one.offset) for one in placed]
        assert found in ([], [(SHARED, 0)]), "a confined device shows other memory"

    def show(self) -> None:
        """Show the status, as its user may ask for it at any time."""
        json.dumps(describe(self.server.device))
        json.dumps(row(self.config, self.server.device, ""))

    def connect(self, path: Path, name: bytes = b"") -> socket.socket:
        """Connect to a socket of the device; one with a name is an agent process."""
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.setblocking(False)
        if name:
            # Unique on this machine: others may be fuzzed at the same time.
            client.bind(name + f"{os.getpid()}.{next(_numbers)}".encode())
        try:
            client.connect(os.fspath(path))
        except OSError:
            client.close()
            raise
        self.clients.append(client)
        return client

    def beat(self, slave: "Slave") -> None:
        """Be an agent that lives: without one, no front-end may be let in."""
        entry = md.Agent(
            instance=1 << 40,
            heartbeat=int(self.loop.now * 1000),
            state=md.AgentState.READY,
            vectors=self.config.vectors,
        )
        fd = self.server.device.store.file.fileno()
        os.pwrite(fd, bytes(entry), os.fstat(fd).st_size - md.SIZE + md.AGENT)
        slave.ring_daemon()
        self.pass_time(0.25)

    def front_end(self) -> FrontEnd:
        """Connect a stock QEMU."""
        memory = [(region(self.size), self.memory.fileno())]
        front_end = FrontEnd(ToHost(self), memory, self.config.queue_pairs)
        try:
            front_end.connect()
        except Dropped:
            front_end.close()
            raise
        return front_end

    def start_front_end(self) -> FrontEnd:
        """Connect a stock QEMU, and load its guest's driver."""
        front_end = self.front_end()
        self.start_driver(front_end)
        return front_end

    def start_driver(self, front_end: FrontEnd) -> None:
        """Load the driver of a front-end's guest."""
        rings = [RingAt.nth(index) for index in range(self.config.rings)]
        front_end.driver_ok(rings, pairs=self.config.queue_pairs)
        self.pass_time(SETTLED)

    def end_refused(self) -> None:
        """Have the process end that is kept out because its memory was refused."""
        carrier = self.server.carrier
        if carrier.describe()["refused"]:
            # Its pidfd is readable then.  All front-ends here are of one process, this.
            ended = os.eventfd(1, os.EFD_CLOEXEC)
            assert carrier._process is not None
            os.dup2(ended, carrier._process._fd.fileno(), inheritable=False)
            os.close(ended)
            self.pass_time()

    def serve_good_ones(self) -> None:
        """Check that a slave and a front-end that behave are served."""
        self.end_refused()
        slave = Slave(self)
        end = self.loop.now + PATIENCE
        while True:
            assert self.loop.now < end, "a good front-end is not served in time"
            slave.read()
            self.beat(slave)
            try:
                front_end = self.start_front_end()
                break
            except Dropped:
                self.pass_time(0.5)
        with front_end:
            backend = self.server.device.backend
            assert backend is not None
            rings = range(self.config.rings)
            assert all(backend.setup.runs(index) for index in rings)
            started = self.loop.now
            for index in rings:
                front_end.stop_ring(index)
            # An agent that is silent, and was there a moment ago, is waited for once.
            assert self.loop.now - started < 1.1, "the front-end had to wait"
        slave.close()
        self.pass_time(SETTLED)

    def cancel(self) -> None:
        """Tick the device no more."""
        self._timer.cancel()

    def close_but_keeper(self) -> None:
        """Close the device, and remove its memory."""
        self._timer.cancel()
        self.server.device.store.discard()
        self.server.close()
        self.memory.close()

    def close(self) -> None:
        """Close the device and its keeper, and remove its memory."""
        self.close_but_keeper()
        if self.keeper is not None:
            self.keeper.close()


def _not_alone() -> None:
    raise AssertionError("the device does not depend on one connection")


class ToHost:
    """A front-end's transport, for which time passes while it waits for a reply."""

    def __init__(self, host: Host) -> None:
        self.host = host
        try:
            self.socket = host.connect(host.config.vhost_user)
        except FileNotFoundError:
            raise Dropped("no front-end is let in") from None
        host.pass_time()

    def send(self, data: bytes, fds: Sequence[int]) -> None:
        """Send a message, and forget the replies to the ones before."""
        self.drain()
        try:
            socket.send_fds(self.socket, [data], list(fds))
        except (ConnectionError, BlockingIOError) as error:
            raise Dropped(str(error)) from error
        self.request = int.from_bytes(data[:4], "little")
        self.host.pass_time()

    def drain(self) -> bytes:
        """Read what has come."""
        data = b""
        while piece := self._piece():
            data += piece
        return data

    def _piece(self) -> bytes:
        try:
            return self.socket.recv(4096)
        except (BlockingIOError, ConnectionError):
            return b""

    def receive(self) -> bytes:
        """Return the reply to the last message."""
        for pause in (0, 0.001, 0.01, 0.1, 1.0, 1.0, 6.0):
            self.host.pass_time(pause)
            # What was asked for before, without a wait, may be answered only now.
            replies = split(self.drain())
            if replies and replies[-1][:4] == self.request.to_bytes(4, "little"):
                return replies[-1]
        raise Dropped("no reply")

    def close(self) -> None:
        self.socket.close()
        self.host.pass_time()


def split(data: bytes) -> list[bytes]:
    """Return the messages in `data`, which are whole."""
    found: list[bytes] = []
    while data:
        size = vu.Header.layout.size + vu.Header.parse(data[:12]).size
        found.append(data[:size])
        data = data[size:]
    return found


class Slave:
    """A slave's QEMU, or an agent process, which reads what it is sent.

    RecordedSlave fails at what would end a real QEMU.
    """

    KINDS = (b"", b"\0vhostpci-guest.", ivshmem.TAKES_KICKS)
    """A QEMU, an agent process, and one that takes the master's kicks."""

    def __init__(self, host: Host, kind: bytes = b"") -> None:
        self.socket = host.connect(host.config.ivshmem, kind)
        takes_kicks = kind == ivshmem.TAKES_KICKS
        self.qemu = RecordedSlave(
            host.config.vectors, is_process=bool(kind), takes_kicks=takes_kicks
        )
        self._host = host
        self._refused = False
        host.pass_time()
        self.read()

    def read(self) -> None:
        """Read all that has come; it may end with a refusal."""
        while not self._refused:
            try:
                data, fds, _, _ = socket.recv_fds(self.socket, ivshmem.SIZE, 1)
            except (BlockingIOError, ConnectionError):
                return
            if not data:
                return
            message = ivshmem.decode(data)
            if message < ivshmem.SHARED_MEMORY:
                self._refused = True
                return
            self.qemu.feed(message, fds[0] if fds else None)

    def ring_daemon(self) -> None:
        """Ring the daemon's doorbell, whatever was done to it."""
        for fd in self.qemu.peers.get(md.DAEMON_PEER, ()):
            os.set_blocking(fd, False)
            with suppress(BlockingIOError):
                os.eventfd_write(fd, 1)

    def close(self) -> None:
        self.socket.close()
        self.qemu.close()
        self._host.pass_time()


class Trial:
    """Check, around one input, that nothing of it is left."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __enter__(self) -> Self:
        self._before = self._state()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            return
        # Refused connections whose other end has not hung up.
        self._world.loop.advance(LINGER if self._world.linger._waiting else 0)
        self._world.check_other()
        after = self._state()
        assert after == self._before, f"{self._before} became {after}"

    def _state(self) -> tuple[int, list[str], list[str], set[int]]:
        """Return the descriptors, the mappings of files, the files, what is watched."""
        world = self._world
        maps = Path("/proc/self/maps").read_text().splitlines()
        mapped = [line for line in maps if "/memfd:" in line or "/dev/shm/" in line]
        files = sorted(path.name for path in world.directory.iterdir())
        return len(open_descriptors()), mapped, files, world.loop.watched()
