# SPDX-License-Identifier: Apache-2.0
"""A device with all that is around it, in one process and without sockets.

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
from vhostpci_host.device.device import Device
from vhostpci_host.device.windows import ShownWindows
from vhostpci_host.fds import Fd
from vhostpci_host.ivshmem.linger import Linger
from vhostpci_host.memory.arena import Arena
from vhostpci_host.memory.attach import AttachedMemory, WindowIds
from vhostpci_host.vhost_user.message import Message
from vhostpci_shared import vhost_user as vu

SETTLED = 0.05


class ToDevice:
    """A front-end's transport into a device; waiting for a reply lets time pass."""

    def __init__(self, device: Device, loop: ManualLoop) -> None:
        self.port = RecordedMaster(device.master_gone)
        self._device = device
        self._loop = loop
        device.master_connected(self.port)

    def send(self, data: bytes, fds: Sequence[int]) -> None:
        self._check()
        while self.port.paused:
            self._loop.advance(0.001)
        size = vu.Header.layout.size
        header = vu.Header.parse(data[:size])
        ours = [Fd(os.dup(fd)) for fd in fds]
        self._device.receive(Message(header, data[size:], ours))
        self._check()

    def receive(self) -> bytes:
        while not self.port.sent:
            assert self.port.paused, "the device neither answers nor waits"
            self._loop.advance(0.001)
            self._check()
        return self.port.sent.pop(0)

    def _check(self) -> None:
        if self.port.dropped is not None:
            raise Dropped(self.port.dropped)

    def close(self) -> None:
        self._device.master_gone()


class MakeFile(Protocol):
    """Makes a memory file of so many bytes."""

    def __call__(self, size: int = 16 * MIB) -> int: ...


class Scene:
    """A device, and whoever is asked for; without `memory` in attach mode."""

    def __init__(
        self,
        directory: Path,
        loop: ManualLoop,
        *,
        memory: int = 0,
        queue_pairs: int = 1,
        slave_qmp: Path | None = None,
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
        )
        self.sockets = RecordedSockets()
        self.plugger = RecordedPlugger()
        self.warnings: list[str] = []
        store = (
            Arena(self.config)
            if memory
            else AttachedMemory(self.config, WindowIds(256))
        )
        windows = ShownWindows(
            self.config,
            store,
            self.sockets.listen,
            loop=loop,
            linger=Linger(loop),
            warn=self.warnings.append,
            plugger=self.plugger if slave_qmp else None,
        )
        self.device = Device(self.config, store, windows, loop)
        self._timer = loop.call_later(TICK, self._tick)
        self.agents = 0
        self._stack = ExitStack()
        self._slaves: list[RecordedSlave] = []

    def _tick(self) -> None:
        """Tick the device, as the daemon does."""
        self._timer = self.loop.call_later(TICK, self._tick)
        self.device.tick()

    @property
    def shown(self) -> dict[int, int]:
        """The windows that have a socket, with the bytes of each one's file."""
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

    def front_end(
        self, memory: list[tuple[vu.MemRegion, int]] | None = None, **options: object
    ) -> FrontEnd:
        """A stock QEMU, connected; its memory is the arena, if nothing is said."""
        transport = ToDevice(self.device, self.loop)
        if memory is None:
            memory = [(region(self.config.memory), self.device.store.file.fileno())]
        front_end = FrontEnd(transport, memory, self.config.queue_pairs, **options)  # type: ignore[arg-type]
        self._stack.enter_context(front_end)
        front_end.connect()
        return front_end

    def running(
        self, memory: list[tuple[vu.MemRegion, int]] | None = None, **options: object
    ) -> FrontEnd:
        """A front-end whose guest's driver is up, and settled."""
        front_end = self.front_end(memory, **options)
        self.start(front_end)
        return front_end

    def start(self, front_end: FrontEnd) -> None:
        """The guest's driver comes up."""
        rings = [RingAt.nth(index) for index in range(self.config.rings)]
        front_end.driver_ok(rings, pairs=self.config.queue_pairs)
        self.settle()

    def settle(self) -> None:
        """Let the device come to rest."""
        self.loop.advance(SETTLED)

    def slave(self, *, is_process: bool = False) -> RecordedSlave:
        """A slave VM (or process), connected; one that was there is gone."""
        self.device.slave_gone()
        slave = RecordedSlave(self.config.vectors, is_process=is_process)
        self._slaves.append(slave)
        self.device.slave_connected(slave)
        return slave

    def agent(self, slave: RecordedSlave) -> FakeAgent:
        """An agent in it, which has been heard of."""
        agent = FakeAgent(self.loop, slave, self.device.store.file.fileno())
        self._stack.callback(agent.close)
        self.agents += 1
        agent.say(instance=self.agents, generation=agent.metadata.generation())
        self.loop.advance(1.0)
        return agent

    def sessions(self) -> list[int]:
        """The sessions that the agent is told of, by ring."""
        snapshot = self.device.store.metadata.snapshot()
        assert snapshot is not None
        return [ring.session for ring in snapshot.rings]

    def set_used(self, ring: RingAt, index: int) -> None:
        """Write a ring's used index, as the agent does."""
        fd = self.device.store.file.fileno()
        os.pwrite(fd, index.to_bytes(2, "little"), ring.used + 2)
