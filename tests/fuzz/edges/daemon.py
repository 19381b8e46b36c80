# SPDX-License-Identifier: Apache-2.0
"""A hostile front-end and a hostile slave at one device of a daemon.

An input is a list of doings, each a byte and what it chooses.  `run` does them, and
then checks that a front-end and a slave that behave are served.
"""

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress

from tests.fakes.frontend import USER_BASE, Dropped, FrontEnd, Refused
from tests.fakes.keeper import FakeKeeper
from tests.fuzz.edges.choices import Choices
from tests.fuzz.edges.files import KINDS, Files
from tests.fuzz.edges.host import (
    MEMORY,
    SETTLED,
    SHARED,
    Host,
    Slave,
    ToHost,
    Trial,
    World,
)
from vhostpci_host.features import OFFERED
from vhostpci_shared import metadata as md
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.position import Position
from vhostpci_shared.vhost_user import Request

MOST = 40
"""Doings of one input: more only take time."""
PAUSES = (0.0, 0.002, 0.006, 0.03, 0.3, 1.1, 2.5, 6.0)
PLACES = (0, 0x1000, 0x4000, 0x8000, 0x10000, 0x14000, 0x18000, MEMORY // 2)
SIZES = (
    *(MEMORY, 0x1000, 0x10000, MEMORY - 0x1000, MEMORY + 0x1000, 2 * MEMORY),
    *(SHARED, SHARED + 0x1000),
)
ADDRESSES = tuple(USER_BASE + place for place in (*PLACES, MEMORY - 64, MEMORY))
FLAGS = (1, 9, 9, 9, 5, 13, 0, 2, 0xFFFF_FFFD)
"""Of a message's header: NEED_REPLY often, so that a refusal ends no connection."""
METADATA = (
    *(md.HEADER, md.GENERATION_OFFSET, md.HEARTBEAT_OFFSET, md.DEVICE, md.REGIONS),
    *(md.RINGS, md.AGENT, md.AGENT_GENERATION_OFFSET, md.AGENT_RINGS, md.POSITIONS),
    *(md.ABOUT, md.AGENT_GENERATION_OFFSET + 8, md.AGENT_RINGS + 8),  # states
)
SIGNALS = tuple(kind for kind in KINDS if "event" in kind or "pipe" in kind)
MOST_CONNECTIONS = 6


class Play:
    """One input: the device, and those who are connected to it."""

    def __init__(self, world: World, choices: Choices, undo: ExitStack) -> None:
        self.choices = choices
        mode = choices.byte()
        # It takes more time than most inputs.
        self.checks_good_ones = mode < 128
        keeper = FakeKeeper() if mode & 6 == 6 else None
        confined = mode & 0x30 == 0x30
        self.host = Host(
            world,
            attach=bool(mode & 1),
            keeper=keeper,
            queue_pairs=2 if mode & 8 and not confined else 1,
            confined=confined,
        )
        undo.callback(self.host.close)
        self.files = Files(self.host.memory.fileno(), world.directory)
        undo.callback(self.files.close)
        self.front_ends: list[FrontEnd] = []
        self.slaves: list[Slave] = []
        self.windows: list[socket.socket] = []
        self._beats = 0
        undo.callback(self._disconnect)

    def _disconnect(self) -> None:
        for front_end in self.front_ends:
            front_end.close()
        for slave in self.slaves:
            slave.close()
        for window in self.windows:
            window.close()

    def end(self) -> None:
        """Disconnect all of them; good ones are served after them."""
        self._disconnect()
        self.front_ends, self.slaves, self.windows = [], [], []
        os.ftruncate(self.host.memory.fileno(), self._memory_size())
        self.host.pass_time(SETTLED)
        if self.checks_good_ones:
            self.host.serve_good_ones()

    def _memory_size(self) -> int:
        attach = self.host.config.memory == 0
        return self.host.size if attach else self.host.server.device.store.size

    # A front-end.

    def front_end(self) -> FrontEnd:
        """Return one of the front-ends; connect the first one."""
        if not self.front_ends:
            self.connect_front_end()
        return self.choices.of(self.front_ends)

    def connect_front_end(self) -> None:
        """Connect a front-end that has said nothing yet."""
        self.host.end_refused()  # the next one is of another process
        if len(self.front_ends) < MOST_CONNECTIONS:
            whole = vu.MemRegion(0, self.host.size, USER_BASE, 0)
            memory = [(whole, self.files.get("ram"))]
            pairs = self.host.config.queue_pairs
            self.front_ends.append(FrontEnd(ToHost(self.host), memory, pairs))

    def leave(self) -> None:
        """Disconnect a front-end."""
        if self.front_ends:
            front_end = self.choices.of(self.front_ends)
            self.front_ends.remove(front_end)
            front_end.close()

    def introduce(self) -> None:
        """Say what QEMU says at first."""
        self.front_end().connect()

    def load_driver(self) -> None:
        """Say what QEMU says when its guest loads the driver."""
        front_end = self.front_end()
        front_end.packed = self.choices.flag()
        front_end.connect()
        self.host.start_driver(front_end)

    def stop(self) -> None:
        """Say what QEMU says when the driver stops a ring."""
        state = vu.VringState(self.choices.below(4), 0)
        self.front_end().ask(Request.GET_VRING_BASE, state)

    def send(self, header: vu.Header, payload: bytes, fds: list[int]) -> None:
        """Send a message that may be anything."""
        self.front_end().transport.send(bytes(header) + payload, fds)

    def send_formed(self) -> None:
        """Send a request in its right form, with values near each bound."""
        request = self.choices.of(REQUESTS)
        payload = b""
        if request in PAYLOADS:
            payload = bytes(PAYLOADS[request](self.choices))
        header = vu.Header(request, self.choices.of(FLAGS), len(payload))
        shape = vu.SHAPES.get(request)
        wanted = shape.max_fds if shape else 0
        if isinstance(shape, vu.Shape) and request is Request.SET_MEM_TABLE:
            wanted = int.from_bytes(payload[:4], "little")
        count = min(wanted, 8) if self.choices.flag() else self.choices.below(9)
        self.send(header, payload, self._descriptors(count))

    def _descriptors(self, count: int) -> list[int]:
        kinds = tuple(KINDS)
        return [self.files.get(self.choices.of(kinds)) for _ in range(count)]

    def send_raw(self) -> None:
        """Send a header and a payload that need not fit."""
        request = self.choices.below(48)
        if request == 47:
            request = self.choices.number()
        flags = self.choices.of(FLAGS)
        payload = self.choices.raw(self.choices.below(81))
        size = len(payload)
        if self.choices.flag():
            size = self.choices.number(0, 12, 4095, 4096, 4097)
        numbers = (value & 0xFFFF_FFFF for value in (request, flags, size))
        fds = self._descriptors(self.choices.below(12))
        self.send(vu.Header(*numbers), payload, fds)

    def send_piece(self) -> None:
        """Send some bytes, which may be the rest of a message."""
        piece = self.choices.raw(self.choices.below(33)) or b"\0"
        self.front_end().transport.send(piece, self._descriptors(self.choices.below(3)))

    def use_notifier(self) -> None:
        """Signal, empty or fill what was sent as a kick or a call; or make it block."""
        fd = self.files.get(self.choices.of(SIGNALS))
        what = self.choices.below(4)
        with suppress(OSError):
            if what < 2:
                os.set_blocking(fd, False)
            if what == 0:
                os.write(fd, (1).to_bytes(8, "little"))
            elif what == 1:
                os.read(fd, 8)
            else:
                os.set_blocking(fd, what == 2)
        self.host.pass_time()

    def kick(self) -> None:
        """Kick a ring, or fill its call."""
        front_end = self.front_end()
        fds = front_end.kicks if self.choices.flag() else front_end.calls
        with suppress(BlockingIOError):
            for fd in fds.values():
                os.eventfd_write(fd, self.choices.of((1, 2**64 - 2)))
        self.host.pass_time()

    def cut_memory(self) -> None:
        """Cut the master's memory, or make it longer."""
        whole = self.host.size
        size = self.choices.of((0, 0x1000, whole // 2, whole, 4 * whole))
        os.ftruncate(self.host.memory.fileno(), size)
        self.host.pass_time()

    def write_memory(self) -> None:
        """Write somewhere into the master's memory, as its guest does."""
        at = self.choices.of(PLACES) + self.choices.below(64)
        os.pwrite(self.host.memory.fileno(), self.choices.raw(8), at)

    # A slave.

    def connect_slave(self) -> None:
        """Connect a slave."""
        if len(self.slaves) < MOST_CONNECTIONS:
            self.slaves.append(Slave(self.host, self.choices.of(Slave.KINDS)))

    def slave(self) -> Slave | None:
        """Return one of the slaves."""
        return self.choices.of(self.slaves) if self.slaves else None

    def read_as_slave(self) -> None:
        """Read what the slaves were sent."""
        for slave in self.slaves:
            slave.read()

    def slave_leaves(self) -> None:
        """Disconnect a slave."""
        if slave := self.slave():
            self.slaves.remove(slave)
            slave.close()

    def slave_speaks(self) -> None:
        """Send something to a socket that is for reading."""
        if slave := self.slave():
            with suppress(ConnectionError, BlockingIOError):
                slave.socket.send(self.choices.raw(8) or b"\0")
            self.host.pass_time()

    def ring_doorbell(self) -> None:
        """Ring a doorbell of any peer, or a vector of our own; or fill or empty it."""
        if not (slave := self.slave()):
            return
        slave.read()
        fds = [
            *slave.qemu.own,
            *(fd for one in slave.qemu.peers.values() for fd in one),
        ]
        fd = self.choices.of(fds or [self.files.get("eventfd")])
        what = self.choices.below(4)
        with suppress(OSError):
            os.set_blocking(fd, what == 3)
            if what < 2:
                os.write(fd, (1, 2**64 - 2)[what].to_bytes(8, "little"))
            elif what == 2:
                os.read(fd, 8)
        self.host.pass_time()

    def _write_metadata(self, at: int, data: bytes) -> None:
        # Not by a mapping of ours: the file may be cut.
        fd = self.host.server.device.store.file.fileno()
        end = os.fstat(fd).st_size
        if end >= md.SIZE:
            os.pwrite(fd, data[: md.SIZE - at], end - md.SIZE + at)

    def scribble(self) -> None:
        """Write a word anywhere in the metadata."""
        at = self.choices.of(METADATA)
        if self.choices.flag():
            at += 8 * self.choices.below(64)
        value = self.choices.number(self._generation())
        self._write_metadata(at, value.to_bytes(8, "little"))

    def _generation(self) -> int:
        return self.host.server.device.publisher.generation

    def say_as_agent(self) -> None:
        """Write the entry of an agent that seems to live, and may lie."""
        choices = self.choices
        entry = md.Agent(
            instance=choices.below(3),
            heartbeat=choices.byte(),
            generation=choices.number(self._generation(), self._generation() - 2),
            state=choices.of((md.AgentState.READY, *md.AgentState)),
            vectors=choices.below(6),
            message=choices.raw(choices.below(9)).decode("latin-1"),
            flags=choices.of((md.NO_AGENT_FLAGS, *md.AgentFlag)),
            offers=choices.number(int(OFFERED)),
        )
        self._write_metadata(md.AGENT, bytes(entry))

    def live_as_agent(self) -> None:
        """Be an agent that beats, and answers what it is asked, or does not."""
        choices = self.choices
        answers, instance = choices.flag(), 1 + choices.below(2)
        generation = self._generation()
        for _ in range(1 + choices.below(5)):
            self._beats += 1
            entry = md.Agent(
                instance=instance,
                heartbeat=self._beats,
                generation=self._generation() if answers else generation - 2,
                state=md.AgentState.READY,
                vectors=self.host.config.vectors,
            )
            self._write_metadata(md.AGENT, bytes(entry))
            self.read_as_slave()
            self._ring_daemon()
            self.host.pass_time(0.25)

    def _ring_daemon(self) -> None:
        for slave in self.slaves:
            slave.ring_daemon()

    def say_of_a_ring(self) -> None:
        """Write the entry of a ring, which may lie."""
        choices, leases = self.choices, self.host.server.device.leases
        index = choices.below(len(leases) + 1)
        entry = md.AgentRing(
            session=choices.number(leases[index % len(leases)].session),
            state=choices.of(tuple(md.AgentRingState)),
            index=choices.number() & 0xFFFF_FFFF,
        )
        at = md.AGENT_RINGS + index * md.AgentRing.layout.size
        self._write_metadata(at, bytes(entry))
        if choices.flag():
            self._ring_daemon()

    def say_position(self) -> None:
        """Write where a packed ring stands, which may be a lie."""
        choices, device = self.choices, self.host.server.device
        index = choices.below(len(device.leases))
        ring = device.setup.rings[index] if device.setup else None
        areas = ring.areas if ring else None
        entry = Position(
            origin=choices.number(device.leases[index].origin),
            desc=areas.desc if areas else choices.number(),
            driver=areas.driver if areas else choices.number(),
            device=areas.device if areas else choices.number(),
            size=choices.number(ring.size if ring else 0) & 0xFFFF_FFFF,
            at=choices.number(0x8000, 0x80FF) & 0xFFFF,
            next=choices.number(0x8000, 0x80FF) & 0xFFFF,
        )
        at = md.POSITIONS + index * Position.layout.size
        self._write_metadata(at, bytes(entry))

    def open_windows(self) -> None:
        """Connect to the windows' sockets, as QEMU or as a process."""
        name = self.choices.of(Slave.KINDS)
        for path in self.host.world.directory.glob("dev.ivshmem.*"):
            if len(self.windows) < MOST_CONNECTIONS:
                self.windows.append(self.host.connect(path, name))
        self.host.pass_time()

    def close_windows(self) -> None:
        """Hang up on the windows' sockets."""
        while self.windows:
            self.windows.pop().close()
        self.host.pass_time()

    # Both.

    def wait(self) -> None:
        """Let time pass."""
        self.host.pass_time(self.choices.of(PAUSES))

    def ask_status(self) -> None:
        """Ask for the status."""
        self.host.show()


DOINGS: tuple[Callable[[Play], None], ...] = (
    *(Play.send_formed, Play.send_formed, Play.send_formed, Play.wait),
    *(Play.send_raw, Play.send_piece, Play.load_driver, Play.stop, Play.introduce),
    *(Play.connect_front_end, Play.leave, Play.use_notifier, Play.kick),
    *(Play.cut_memory, Play.write_memory, Play.connect_slave, Play.read_as_slave),
    *(Play.slave_leaves, Play.slave_speaks, Play.ring_doorbell, Play.scribble),
    *(Play.say_as_agent, Play.live_as_agent, Play.live_as_agent),
    *(Play.say_of_a_ring, Play.say_position),
    *(Play.open_windows, Play.close_windows, Play.ask_status),
)


def _state(choices: Choices) -> vu.Payload:
    index = choices.number(0, 1, 2) & 0xFFFF_FFFF
    return vu.VringState(index, choices.number(256, 1) & 0xFFFF_FFFF)


def _notifier(choices: Choices) -> vu.Payload:
    return vu.U64(choices.number(0, 1, 0x100, 2))


def _addr(choices: Choices) -> vu.Payload:
    index = choices.number(0, 1) & 0xFFFF_FFFF
    desc, used, avail = (choices.number(*ADDRESSES) for _ in range(3))
    return vu.VringAddr(index, choices.flag(), desc, used, avail)


def _region(choices: Choices) -> vu.MemRegion:
    return vu.MemRegion(
        guest_addr=choices.number(*PLACES),
        size=choices.number(*SIZES),
        user_addr=choices.number(*ADDRESSES),
        mmap_offset=choices.number(*PLACES),
    )


def _table(choices: Choices) -> vu.Payload:
    return vu.MemTable(tuple(_region(choices) for _ in range(choices.below(10))))


def _u64(choices: Choices) -> vu.Payload:
    return vu.U64(choices.number(1500, 68, 65535, 0x1_4000_0000, 1 << 34, 9))


PAYLOADS: dict[Request, Callable[[Choices], vu.Payload]] = {
    Request.SET_MEM_TABLE: _table,
    Request.ADD_MEM_REG: lambda choices: vu.SingleRegion(_region(choices)),
    Request.REM_MEM_REG: lambda choices: vu.SingleRegion(_region(choices)),
    Request.SET_VRING_NUM: _state,
    Request.SET_VRING_BASE: _state,
    Request.GET_VRING_BASE: _state,
    Request.SET_VRING_ENABLE: _state,
    Request.SET_VRING_ADDR: _addr,
    Request.SET_VRING_KICK: _notifier,
    Request.SET_VRING_CALL: _notifier,
    Request.SET_VRING_ERR: _notifier,
    Request.SET_FEATURES: _u64,
    Request.SET_PROTOCOL_FEATURES: _u64,
    Request.SEND_RARP: _u64,
    Request.NET_SET_MTU: _u64,
}
REQUESTS = (*PAYLOADS, *(one for one in Request if one not in PAYLOADS))


def run(world: World, data: bytes) -> None:
    """Do what an input says; fail if the daemon does not bear it."""
    choices = Choices(data)
    with Trial(world), ExitStack() as undo:
        play = Play(world, choices, undo)
        for _ in range(MOST):
            if not choices.left:
                break
            # What a front-end that behaves says may be refused after what came before.
            with suppress(Dropped, Refused):
                choices.of(DOINGS)(play)
            play.host.check_shown()
        play.end()


def make() -> World:
    """Return what is the same for all inputs."""
    return World()
