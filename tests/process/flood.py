# SPDX-License-Identifier: Apache-2.0
"""A peer that floods a device: python -m tests.process.flood KIND RUN-DIR MEM-DIR NAME

It prints a line when it has begun, and ends when it is killed.
"""

import mmap
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path

from tests.fakes.frontend import Dropped, FrontEnd, RingAt, Socket, region
from tests.fakes.slave_client import SlaveClient
from tests.unix_socket import connected
from vhostpci_shared import metadata as md
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.access import Metadata, find
from vhostpci_shared.vhost_user import Request

MIB = 1 << 20
MEMORY = 16 * MIB
RINGS = [RingAt.nth(0), RingAt.nth(1)]
QUESTION = vu.message(Request.GET_FEATURES)


class Target:
    """The device that is flooded, and the memory that its front-end shows."""

    def __init__(self, run_dir: Path, memory_dir: Path, name: str) -> None:
        self.run_dir = run_dir
        self.name = name
        arena = memory_dir / name
        if arena.exists():
            self.memory = os.open(arena, os.O_RDWR)
        else:
            self.memory = new_file(MEMORY)

    def connect(self, kind: str) -> socket.socket:
        """Connect to one of its sockets."""
        return connected(self.run_dir / f"{self.name}.{kind}")

    def front_end(self) -> FrontEnd:
        """Connect as a front-end does, and load its driver."""
        transport = Socket(self.run_dir / f"{self.name}.vhost-user")
        made = FrontEnd(transport, [(region(MEMORY), self.memory)])
        made.connect()
        made.driver_ok(RINGS)
        return made


def new_file(size: int) -> int:
    """Make a memory file."""
    file = os.memfd_create("flood")
    os.ftruncate(file, size)
    return file


Flood = Iterator[None]
"""What floods: each step is a piece of it."""


def messages(target: Target) -> Flood:
    """Ask without end, and read the answers."""
    transport = target.front_end().transport
    assert isinstance(transport, Socket)
    while True:
        transport.socket.sendall(QUESTION * 64)
        for _ in range(64):
            transport.receive()
        yield


def tables(target: Target) -> Flood:
    """Bring other memory all the time, in many files: no message costs more."""
    front_end = target.front_end()
    table = vu.MemTable(tuple(region(MIB, guest_addr=at * MIB) for at in range(8)))
    message = vu.message(Request.SET_MEM_TABLE, table)
    while True:
        for _ in range(4):
            files = [new_file(MIB) for _ in range(8)]
            for _ in range(4):
                front_end.transport.send(message, files)
            for file in files:
                os.close(file)
        front_end.ask(Request.GET_FEATURES)
        yield


def drivers(target: Target) -> Flood:
    """Load the driver again and again, with more and with less memory."""
    front_end = target.front_end()
    for turn in count():
        front_end.regions = [(region(MEMORY >> turn % 2), target.memory)]
        front_end.driver_ok(RINGS)
        yield


def unread(target: Target) -> Flood:
    """Ask, never read the answers, and come back when we are dropped."""
    while True:
        with target.connect("vhost-user") as ours:
            ours.settimeout(1.0)
            with suppress(OSError):
                while True:
                    ours.sendall(QUESTION * 64)
                    yield
        yield


def kicks(target: Target) -> Flood:
    """Kick both rings without end."""
    front_end = target.front_end()
    while True:
        for index in range(2):
            with suppress(BlockingIOError):
                front_end.kick(index)
        yield


def connects(target: Target) -> Flood:
    """Connect to all sockets of the device, each time as another process."""
    while True:
        child = os.fork()
        if not child:
            for kind in ("vhost-user", "ivshmem", "control"):
                target.connect(kind).close()
            os._exit(0)
        os.waitpid(child, 0)
        yield


def metadata(target: Target) -> Flood:
    """Be another agent each time, answer any generation, and ring the daemon."""
    path = target.run_dir / f"{target.name}.ivshmem"
    doorbell = SlaveClient(path).handshake(3).peers[md.DAEMON_PEER][0]
    window = mmap.mmap(target.memory, os.fstat(target.memory).st_size)
    shown = Metadata(find(memoryview(window)))
    states = (*[md.AgentState.READY] * 6, md.AgentState.FAILED)
    for turn in count(1):
        for ring in range(2):
            state = md.AgentRingState(turn % 4)
            shown.write_agent_ring(ring, md.AgentRing(session=turn, state=state))
        shown.write_agent(
            md.Agent(
                instance=turn,
                generation=turn,
                heartbeat=turn,
                state=states[turn % 7],
                vectors=turn % 5,
                message=f"turn {turn}",
            )
        )
        os.eventfd_write(doorbell, 1)
        yield


def control(target: Target) -> Flood:
    """Send long lines on many control connections at a time."""
    with ExitStack() as stack:
        ours = [stack.enter_context(target.connect("control")) for _ in range(60)]
        line = b"[" + b"0," * 30_000 + b"0]\n"
        while True:
            for one in ours:
                one.sendall(line)
            for one in ours:
                assert one.recv(1 << 16).endswith(b"\n")
            yield


FLOODS: dict[str, Callable[[Target], Flood]] = {
    one.__name__: one
    for one in (
        *(messages, tables, drivers, unread, kicks, connects, metadata, control),
    )
}


def main(kind: str, run_dir: str, memory_dir: str, name: str) -> None:
    """Flood until this process is killed; begin again after each hang-up."""
    target = Target(Path(run_dir), Path(memory_dir), name)
    said = False
    while True:
        with suppress(Dropped, ConnectionError):
            for _ in FLOODS[kind](target):
                if not said:
                    print("flooding", flush=True)
                    said = True


if __name__ == "__main__":
    main(*sys.argv[1:])
