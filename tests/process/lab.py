# SPDX-License-Identifier: Apache-2.0
"""The daemon and the agent as processes, between two network namespaces.

the test's namespace                              the slave's namespace
10.9.0.1 mtap0 ── Master ── vhostpci-host ── vhostpci-guest ── vp0 10.9.0.2
         (threads of the test)   (process)        (process, --socket)
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from tests.pings import came_back, ping
from tests.process.master import TAP as MASTER_TAP
from tests.process.master import Master, Ram
from tests.process.program import DaemonProgram, Program, ask_status, run
from tests.vm.netns import Namespace
from tests.waiting import TIMEOUT, wait_for

MASTER_ADDRESS = "10.9.0.1"
SLAVE_ADDRESS = "10.9.0.2"
SLAVE_TAP = "vp0"
# A build with a sanitizer, or with coverage, makes more system calls.
SECCOMP = ("--seccomp", os.environ.get("VHOSTPCI_SECCOMP", "kill"))
MEMORY = 32 << 20
ARENA = ("--memory", f"{MEMORY >> 20}M")
ATTACH = ("--mode", "attach")


class Lab:
    """Everything in the drawing, each part started when the test says so."""

    def __init__(self, directory: Path) -> None:
        self.run_dir = directory / "run"
        self._logs = directory
        self._stack = ExitStack()
        # On tmpfs, and this lab's alone: the shared lab of a file's tests runs while
        # one of these tests has a separate lab.
        memory = TemporaryDirectory(prefix="vhostpci-test-", dir="/dev/shm")
        self.memory_dir = Path(self._stack.enter_context(memory))
        self.slave = self._stack.enter_context(Namespace())
        self._programs: list[Program] = []
        self._daemon: DaemonProgram | None = None
        self._master: Master | None = None
        self._agent: Program | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for program in reversed(self._programs):
            program.close()
        self._stack.close()

    def _start(self, name: str, argv: list[str]) -> Program:
        log = self._logs / f"{name}-{len(self._programs)}.log"
        program = Program(argv, log)
        self._programs.append(program)
        return program

    def start_run(self, argv: list[str]) -> DaemonProgram:
        """Start a command that is `vhostpci-host run`; it ends with the lab."""
        log = self._logs / f"daemon-{len(self._programs)}.log"
        program = DaemonProgram(argv, log)
        self._programs.append(program)
        return program

    def start_server(self, argv: list[str]) -> Program:
        """Start any other program; it ends with the lab."""
        return self._start(argv[-1], argv)

    # The hypervisor.

    def daemon_argv(self, *options: str, name: str = "net0") -> list[str]:
        """The command of a daemon that serves `name`."""
        return [
            *(sys.executable, "-m", "vhostpci_host", "run", name),
            *("--run-dir", str(self.run_dir), "--memory-dir", str(self.memory_dir)),
            *(() if ATTACH[0] in options else ARENA),
            # A master here does not connect again by itself, as QEMU does.
            *(() if "--carrier-grace" in options else ("--carrier-grace", "off")),
            *(() if "--seccomp" in options else SECCOMP),
            *options,
        ]

    def start_daemon(self, *options: str) -> DaemonProgram:
        """Start the daemon, and wait until it serves."""
        daemon = self._daemon = self.start_run(self.daemon_argv(*options))
        wait_for(
            lambda: daemon.process.poll() is not None or self.daemon_serves(),
            "the daemon serves",
        )
        assert daemon.process.poll() is None, daemon.log
        return daemon

    @property
    def daemon(self) -> DaemonProgram:
        """The daemon that `start_daemon` started last."""
        assert self._daemon is not None, "no daemon has been started"
        return self._daemon

    def start_fleet(self, *names: str) -> DaemonProgram:
        """Start a daemon with many devices, and wait until it serves them."""
        file = self._logs / "vms.toml"
        file.write_text(
            f'run-dir = "{self.run_dir}"\nmemory-dir = "{self.memory_dir}"\n'
            'carrier-grace = "off"\n'
            + "".join(f'[device.{name}]\nmemory = "{MEMORY}"\n' for name in names)
        )
        module = (sys.executable, "-m", "vhostpci_host")
        daemon = self.start_run([*module, "run", "--config", str(file), *SECCOMP])
        daemon.wait_log("serving ")
        return daemon

    def daemon_serves(self) -> bool:
        """Whether a daemon answers."""
        return self.run_host("status", "net0").returncode == 0

    def run_host(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run another of vhostpci-host's commands to its end."""
        return run(
            *(sys.executable, "-m", "vhostpci_host", verb),
            *(*words, "--run-dir", str(self.run_dir)),
        )

    def status(self) -> Any:
        """What the daemon says of the device."""
        return ask_status(self.run_dir, "net0")

    def wait_state(self, state: str) -> None:
        """Wait until the daemon says that the device is in that state."""
        wait_for(lambda: self.status()["state"] == state, self.status)

    def session(self) -> dict[str, Any]:
        """Return what a test in a shared lab must leave as it found it.

        That is the programs that run, the master's memory, the rings with their
        states, the TAP's carrier and the files; not counters.
        """
        status = self.status()
        return {
            "programs": [
                program.process.pid
                for program in self._programs
                if program.process.poll() is None
            ],
            "regions": status["master"] and status["master"]["regions"],
            "state": status["state"],
            "rings": [
                (ring["queue"], ring["state"], ring["enabled"])
                for ring in status["rings"]
            ],
            "windows": status["windows"],
            "carrier": self.carrier(),
            "files": self.files(),
        }

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Fail a test that does not leave the lab as it found it.

        Inside the block the programs' logs hold only what is logged from now on.
        """
        before = self.session()
        for program in self._programs:
            program.start_log_here()
        yield
        # What the test has ended or disconnected may take a moment to go.
        wait_for(
            lambda: self.session() == before,
            lambda: f"the lab was {before}\nand the test left {self.session()}",
            TIMEOUT,
        )

    @property
    def arena(self) -> Path:
        """The arena file."""
        return self.memory_dir / "net0"

    def files(self) -> list[str]:
        """What the daemon has in its two directories."""
        return sorted(
            path.name
            for directory in (self.run_dir, self.memory_dir)
            for path in directory.glob("*")
        )

    # The master.

    def start_master(
        self,
        memory: Ram | None = None,
        *,
        queue_pairs: int = 1,
        packed: bool = False,
    ) -> Master:
        """Start a master, whose driver is not loaded yet, and set up its interface.

        Its memory is the arena, unless `memory` is given.
        """
        if memory is None:
            memory = Ram.of_arena(self.arena, MEMORY)
        socket = self.run_dir / "net0.vhost-user"
        master = Master(socket, memory, queue_pairs=queue_pairs, packed=packed)
        self._stack.callback(master.close)
        self._master = master
        set_up_master(MASTER_ADDRESS)
        return master

    @property
    def master(self) -> Master:
        """The master that `start_master` started last."""
        assert self._master is not None, "no master has been started"
        return self._master

    # The slave.

    def agent_argv(self, *options: str) -> list[str]:
        """The command of an agent on the daemon's socket."""
        socket = str(self.run_dir / "net0.ivshmem")
        return [
            *self.slave.prefix,
            *(sys.executable, "-m", "vhostpci_guest", "run", "--socket", socket),
            *("--tap", SLAVE_TAP, *options),
        ]

    def start_agent_by(self, argv: list[str]) -> Program:
        """Start an agent by its whole command."""
        self._agent = self._start("agent", argv)
        return self._agent

    def start_agent(self, *options: str) -> Program:
        """Start the agent."""
        address = ("--address", f"{SLAVE_ADDRESS}/24")
        return self.start_agent_by(self.agent_argv(*address, *options))

    @property
    def agent(self) -> Program:
        """The agent that `start_agent` started last."""
        assert self._agent is not None, "no agent has been started"
        return self._agent

    def run_in_slave(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the slave's network namespace."""
        return run(*self.slave.prefix, *argv)

    def carrier(self) -> str | None:
        """Return the state of the slave's TAP: `UP`, `NO-CARRIER` or `CHANGING`.

        None stands for no TAP.  The carrier is there (LOWER_UP) a moment before the
        kernel has activated the TAP's queue (state UP), and drops packets until then.
        """
        done = self.run_in_slave("ip", "-o", "link", "show", SLAVE_TAP)
        if done.returncode:
            return None
        if "LOWER_UP" not in done.stdout:
            return "NO-CARRIER"
        return "UP" if " state UP " in done.stdout else "CHANGING"

    def wait_carrier(self, state: str | None) -> None:
        """Wait until the slave's TAP is in that state."""
        wait_for(lambda: self.carrier() == state, f"slave's TAP is {state}")

    def ping_from_master(self, count: int = 5, *options: str) -> int:
        """Ping the slave; return how many came back."""
        done = run(*ping(count, *options), SLAVE_ADDRESS)
        return came_back(done.stdout + done.stderr, count)

    def ping_from_slave(self, count: int = 5, *options: str) -> int:
        """Ping the master; return how many came back."""
        done = self.run_in_slave(*ping(count, *options), MASTER_ADDRESS)
        return came_back(done.stdout + done.stderr, count)


def set_up_master(address: str) -> None:
    """Set up the master's interface in the namespace of this thread.

    Its MAC depends on `address` only, so that the next master has the same: Linux does
    not take another MAC for a neighbour within a second, and packets would be lost.
    """
    number = int(address.rpartition(".")[2])
    ip("link", "set", MASTER_TAP, "address", f"52:54:00:09:00:{number:02x}")
    ip("addr", "add", f"{address}/24", "dev", MASTER_TAP)
    ip("link", "set", MASTER_TAP, "up")


def ip(*words: str) -> None:
    """Run ip(8) in the namespace of this thread."""
    done = run("ip", *words)
    assert not done.returncode, done.stderr
