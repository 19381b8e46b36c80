# SPDX-License-Identifier: Apache-2.0
"""One daemon with many devices, from a file and by `add`.

vms.toml ──► vhostpci-host run --config ◄── RUN-DIR/control ◄── add, remove, list
                 │ NAME.vhost-user ◄── FrontEnd      (a master's QEMU)
                 │ NAME.ivshmem    ◄── SlaveClient   (a slave's QEMU)
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

from tests.fakes.frontend import FrontEnd, RingAt, Socket, region
from tests.fakes.slave_client import SlaveClient
from tests.process.program import Program, new_log, run
from tests.waiting import wait_for

MIB = 1 << 20
MEMORY = 16 * MIB
MODULE = ("-W", "error", "-m", "vhostpci_host")


class Fleet(Program):
    """The daemon, and what one does with it.

    Args:
        directory: where all its files are to be, with a short name.
        devices: the names of those that the file has.
        options: lines for each device's table.
        program: what Python is to run.
    """

    def __init__(
        self,
        directory: Path,
        devices: Iterable[str] = (),
        options: str = 'memory = "16M"',
        program: Iterable[str] = MODULE,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.run_dir, self.memory_dir = directory / "run", directory / "memory"
        self.file = directory / "vms.toml"
        self.file.write_text(
            f'run-dir = "{self.run_dir}"\nmemory-dir = "{self.memory_dir}"\n'
            + "".join(f"[device.{name}]\n{options}\n" for name in devices)
        )
        command = [sys.executable, *program, "run", "--config", str(self.file)]
        super().__init__(command, new_log(directory), prepare=prepare)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.wait_log("serving ")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.close()

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of ours to its end."""
        return run(sys.executable, *MODULE, *words, "--run-dir", str(self.run_dir))

    def devices(self) -> dict[str, Any]:
        """What `list` says, by name."""
        done = self.command("list", "-j")
        assert done.returncode == 0, done.stderr
        return {row["name"]: row for row in json.loads(done.stdout)}

    def wait_state(self, name: str, state: str) -> None:
        """Wait until `list` says that of a device."""
        wait_for(
            lambda: self.devices()[name]["state"] == state, lambda: self.devices()[name]
        )

    def files(self) -> list[str]:
        """What it has in its two directories."""
        return sorted(
            path.name
            for directory in (self.run_dir, self.memory_dir)
            for path in directory.glob("*")
        )

    def slave(self, name: str, pairs: int = 1) -> SlaveClient:
        """Connect a slave; it ends with us."""
        client = SlaveClient(self.run_dir / f"{name}.ivshmem")
        self._stack.callback(client.close)
        return client.handshake(1 + 2 * pairs)

    def master(self, name: str, pairs: int = 1) -> FrontEnd:
        """Connect a stock QEMU whose memory the daemon takes; it ends with us."""
        memory = self._memory(name)
        self._stack.callback(os.close, memory)
        transport = Socket(self.run_dir / f"{name}.vhost-user")
        front_end = FrontEnd(transport, [(region(MEMORY), memory)], pairs)
        self._stack.enter_context(front_end)
        front_end.connect()
        return front_end

    def _memory(self, name: str) -> int:
        """Open the arena, or make memory where there is none (attach mode)."""
        try:
            return os.open(self.memory_dir / name, os.O_RDWR)
        except FileNotFoundError:
            memory = os.memfd_create(name)
            os.ftruncate(memory, MEMORY)
            return memory

    def disconnect(self) -> None:
        """End all masters and slaves that we were."""
        self._stack.close()

    def pair(self, name: str) -> tuple[FrontEnd, SlaveClient]:
        """A master and its slave, with running rings."""
        client, front_end = self.slave(name), self.master(name)
        front_end.driver_ok([RingAt.nth(0), RingAt.nth(1)])
        self.wait_log(f"{name}: started rings [0, 1]")
        client.catch_up()
        return front_end, client


def kicks_arrive(front_end: FrontEnd, client: SlaveClient) -> bool:
    """Whether a kick of the master's rings the slave."""
    front_end.kick(1)
    return client.interrupted(2)
