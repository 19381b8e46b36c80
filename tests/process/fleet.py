# SPDX-License-Identifier: Apache-2.0
"""One daemon with many devices, from a file and by `add`.

vms.toml ──► vhostpci-host run --config ◄── RUN-DIR/control ◄── add, remove, list
                 │ NAME.vhost-user ◄── FrontEnd      (a master's QEMU)
                 │ NAME.ivshmem    ◄── SlaveClient   (a slave's QEMU)
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from tests.fakes.frontend import FrontEnd, RingAt, Socket, region
from tests.fakes.slave_client import SlaveClient
from tests.process.program import DaemonProgram, new_log, run
from tests.waiting import PROCESS_TIMEOUT, TIMEOUT, wait_for
from vhostpci_host.daemon.control_client import ask

MIB = 1 << 20
MEMORY = 16 * MIB
MODULE = ("-W", "error", "-m", "vhostpci_host")


class Fleet(DaemonProgram):
    """A daemon with many devices, and the masters and slaves that the test connects.

    Args:
        directory: for all its files; a short path.
        devices: names of the devices in the file.
        options: lines for each device's table.
        program: arguments of Python that run vhostpci-host.
    """

    def __init__(
        self,
        directory: Path,
        devices: Iterable[str] = (),
        options: str = 'memory = "16M"',
        program: Iterable[str] = MODULE,
    ) -> None:
        self.run_dir, self.memory_dir = directory / "run", directory / "memory"
        self.file = directory / "vms.toml"
        self.file.write_text(
            f'run-dir = "{self.run_dir}"\nmemory-dir = "{self.memory_dir}"\n'
            + "".join(f"[device.{name}]\n{options}\n" for name in devices)
        )
        command = [sys.executable, *program, "run", "--config", str(self.file)]
        super().__init__(command, new_log(directory))
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.wait_log("serving ")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self.close()

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one of vhostpci-host's commands to its end."""
        return run(sys.executable, *MODULE, *words, "--run-dir", str(self.run_dir))

    def devices(self) -> dict[str, Any]:
        """Return what `vhostpci-host list -j` shows, by name."""
        rows = ask(self.run_dir / "control", {"command": "list"}, PROCESS_TIMEOUT)
        return {row["name"]: row for row in rows}

    def wait_state(self, name: str, state: str) -> None:
        """Wait until `list` shows the device in that state."""
        wait_for(
            lambda: self.devices()[name]["state"] == state, lambda: self.devices()[name]
        )

    def files(self) -> list[str]:
        """Return the names of the files in its two directories."""
        return sorted(
            path.name
            for directory in (self.run_dir, self.memory_dir)
            for path in directory.glob("*")
        )

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Fail a test that leaves other devices or files, or that ends the daemon.

        Masters and slaves that the test has connected are disconnected after it.
        Inside the block the log holds only what is logged from now on.
        """
        before = self._idle_state()
        self.start_log_here()
        yield
        self.disconnect()
        assert self.process.poll() is None, self.log
        wait_for(
            lambda: self._idle_state() == before,
            lambda: f"the fleet was {before}\nand the test left {self._idle_state()}",
            TIMEOUT,
        )

    def _idle_state(self) -> tuple[dict[str, Any], list[str]]:
        """Return the devices, each with its master and slave, and the files."""
        return self.devices(), self.files()

    def slave(self, name: str, pairs: int = 1) -> SlaveClient:
        """Connect a slave, until `disconnect`."""
        client = SlaveClient(self.run_dir / f"{name}.ivshmem")
        self._stack.callback(client.close)
        return client.handshake(1 + 2 * pairs)

    def master(self, name: str, pairs: int = 1) -> FrontEnd:
        """Connect a stock QEMU whose memory the daemon accepts, until `disconnect`."""
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
        """Disconnect all masters and slaves."""
        self._stack.close()

    def pair(self, name: str) -> tuple[FrontEnd, SlaveClient]:
        """Connect a master and its slave, and start their rings."""
        client, front_end = self.slave(name), self.master(name)
        front_end.driver_ok([RingAt.nth(0), RingAt.nth(1)])
        self.wait_log(f"{name}: started rings [0, 1]")
        client.catch_up()
        return front_end, client


def kicks_arrive(front_end: FrontEnd, client: SlaveClient) -> bool:
    """Whether a kick of the master arrives as an interrupt at the slave."""
    front_end.kick(1)
    return client.interrupted(2)
