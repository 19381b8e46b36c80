# SPDX-License-Identifier: Apache-2.0
"""A device and everything that it talks to, in one process and without sockets.

FrontEnd ──messages──► Device ──messages──► RecordedSlave ◄── FakeAgent
                         └──── window 0 (a file) ─────┘
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol, Self

from tests.fakes.agent import FakeAgent
from tests.fakes.frontend import Dropped, FrontEnd, RingAt, region
from tests.fakes.loop import ManualLoop
from tests.fakes.ports import (
    RecordedMaster,
    RecordedPlugger,
    RecordedSlave,
    RecordedSockets,
)
from tests.fakes.windows import MIB
from vhostpci_host.config.device import DeviceConfig, Mode
from vhostpci_host.daemon.daemon import TICK
from vhostpci_host.daemon.server import SLOW_TICKS
from vhostpci_host.device.device import Device
from vhostpci_host.device.peer_log import PeerLog
from vhostpci_host.device.windows import ShownWindows
from vhostpci_host.fds import Fd
from vhostpci_host.ivshmem.linger import Linger
from vhostpci_host.ivshmem.relays import LoopRelays
from vhostpci_host.memory.arena import Arena
from vhostpci_host.memory.attach import AttachedMemory, WindowIds
from vhostpci_host.vhost_user.message import Message
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.virtio import Feature

SETTLED = 0.05
POOL, SHARED_AT = 16 * MIB, 512 * MIB
"""Of a confined device: its bounce pool, and where its master has the shared region."""


PATIENCE = 60.0
"""Seconds of the loop's time after which a front-end waits for something no more."""


class ToDevice:
    """A front-end's transport to a device; time passes while it waits for a reply."""

    def __init__(self, device: Device, loop: ManualLoop) -> None:
        self.port = RecordedMaster(device.master_gone)
        self._device = device
        self._loop = loop
        device.master_connected(self.port)

    def send(self, data: bytes, fds: Sequence[int]) -> None:
        self._check()
        end = self._loop.now + PATIENCE
        while self.port.paused:
            self._pass_time(end)
        size = vu.Header.layout.size
        header = vu.Header.parse(data[:size])
        ours = [Fd(os.dup(fd)) for fd in fds]
        self._device.receive(Message(header, data[size:], ours))
        self._check()

    def receive(self) -> bytes:
        end = self._loop.now + PATIENCE
        while not self.port.sent:
            assert self.port.paused, "the device neither answers nor waits"
            self._pass_time(end)
            self._check()
        return self.port.sent.pop(0)

    def _pass_time(self, end: float) -> None:
        assert self._loop.now < end, f"the device does not go on within {PATIENCE:g} s"
        self._loop.advance(0.001)

    def _check(self) -> None:
        if self.port.dropped is not None:
            raise Dropped(self.port.dropped)

    def close(self) -> None:
        self._device.master_gone()


class MakeFile(Protocol):
    """Makes a memory file of `size` bytes, and returns its descriptor."""

    def __call__(self, size: int = 16 * MIB) -> int: ...


class Scene:
    """A device, and the front-end, slave and agent that a test asks for.

    Args:
        directory: for the device's sockets and its arena.
        loop: the only source of time.
        memory: bytes of the arena; 0 for attach mode.
        queue_pairs: of the device.
        slave_qmp: with a QMP socket, the device's windows are plugged.
        features: the most that a front-end is offered.
        confined: whether the device is.
    """

    def __init__(
        self,
        directory: Path,
        loop: ManualLoop,
        *,
        memory: int = 0,
        queue_pairs: int = 1,
        slave_qmp: Path | None = None,
        features: Feature | None = None,
        confined: bool = False,
    ) -> None:
        self.loop = loop
        self.config = DeviceConfig(
            name="dev",
            mode=Mode.ARENA if memory else Mode.ATTACH,
            memory=memory,
            queue_pairs=queue_pairs,
            run_dir=directory,
            memory_dir=directory,
            slave_qmp=slave_qmp,
            features=features,
            confined=POOL if confined else None,
        )
        self.sockets = RecordedSockets()
        self.plugger = RecordedPlugger()
        self.warnings: list[str] = []
        self.device = self._make_device()
        self._ticks = 0
        self._timer = loop.call_later(TICK, self._tick)
        self.agents = 0
        self._stack = ExitStack()
        self._slaves: list[RecordedSlave] = []

    def _make_device(self) -> Device:
        config, loop = self.config, self.loop
        arena = config.mode is Mode.ARENA
        store = Arena(config) if arena else AttachedMemory(config, WindowIds(256))
        windows = ShownWindows(
            config,
            store,
            self.sockets.listen,
            loop=loop,
            linger=Linger(loop),
            warn=self.warnings.append,
            plugger=self.plugger if config.plugged else None,
        )
        log, relays = PeerLog(config.name, loop), LoopRelays(loop)
        return Device(config, store, windows, loop, log, relays)

    def _tick(self) -> None:
        """Tick the device, as the daemon does."""
        self._timer = self.loop.call_later(TICK, self._tick)
        self._ticks += 1
        if self._ticks % SLOW_TICKS == 0:
            self.device.slow_tick(names=True)
        self.device.tick()

    @property
    def shown(self) -> dict[int, int]:
        """The size of each window that has a socket, by its number."""
        files = self.device.store.files
        return {number: files[number].size for number in self.sockets.windows}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._timer.cancel()
        self.device.close()
        assert not self.sockets.open, "a window's socket stays open"
        for slave in self._slaves:
            slave.close()
        assert not self.loop.watched(), "the device still waits for descriptors"

    @property
    def above(self) -> int:
        """The guest address where the memory that the slave has begins."""
        return 0 if self.config.confined is None else SHARED_AT

    @property
    def shared(self) -> vu.MemRegion:
        """That memory of a stock QEMU's."""
        return region(self.config.shared, guest_addr=self.above)

    @staticmethod
    def memory(file: int) -> list[tuple[vu.MemRegion, int]]:
        """Return the memory of a master that is all in one file of 16 MiB."""
        return [(region(16 * MIB), file)]

    def front_end(
        self, memory: list[tuple[vu.MemRegion, int]] | None = None, **options: object
    ) -> FrontEnd:
        """Connect a stock QEMU; without `memory`, its memory is the arena."""
        transport = ToDevice(self.device, self.loop)
        if memory is None:
            memory = [(self.shared, self.device.store.file.fileno())]
        front_end = FrontEnd(transport, memory, self.config.queue_pairs, **options)  # type: ignore[arg-type]
        self._stack.enter_context(front_end)
        front_end.connect()
        return front_end

    def running(
        self, memory: list[tuple[vu.MemRegion, int]] | None = None, **options: object
    ) -> FrontEnd:
        """Connect a front-end, load its guest's driver, and let the device settle."""
        front_end = self.front_end(memory, **options)
        self.start(front_end)
        return front_end

    def start(self, front_end: FrontEnd) -> None:
        """Load the guest's driver, and let the device settle."""
        indexes = range(self.config.rings)
        rings = [RingAt.nth(index, above=self.above) for index in indexes]
        front_end.driver_ok(rings, pairs=self.config.queue_pairs)
        self.settle()

    def settle(self) -> None:
        """Let the device settle: the front-end sends nothing more for now."""
        self.loop.advance(SETTLED)

    def slave(
        self, *, is_process: bool = False, takes_kicks: bool = False
    ) -> RecordedSlave:
        """Connect a slave VM (or process), after the previous one has disconnected."""
        self.device.slave_gone()
        slave = RecordedSlave(
            self.config.vectors, is_process=is_process, takes_kicks=takes_kicks
        )
        self._slaves.append(slave)
        self.device.slave_connected(slave)
        return slave

    def agent(self, slave: RecordedSlave) -> FakeAgent:
        """Start an agent in the slave, and let the device read what it says."""
        agent = FakeAgent(self.loop, slave, self.device.store.file.fileno())
        self._stack.callback(agent.close)
        self.agents += 1
        agent.say(instance=self.agents, generation=agent.metadata.generation())
        self.loop.advance(1.0)
        return agent

    def sessions(self) -> list[int]:
        """Return the sessions that the metadata shows the agent, by ring."""
        snapshot = self.device.store.metadata.snapshot()
        assert snapshot is not None
        return [ring.session for ring in snapshot.rings]

    def set_used(self, ring: RingAt, index: int) -> None:
        """Write a ring's used index, as the agent does."""
        fd = self.device.store.file.fileno()
        os.pwrite(fd, index.to_bytes(2, "little"), ring.used + 2)

    def set_avail(self, ring: RingAt, index: int) -> None:
        """Write a ring's avail index, as the master's driver does."""
        fd = self.device.store.file.fileno()
        os.pwrite(fd, index.to_bytes(2, "little"), ring.avail + 2)
