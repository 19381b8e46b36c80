# SPDX-License-Identifier: Apache-2.0
"""The daemon and the agent as processes, between two network namespaces.

the test's namespace                              the slave's namespace
10.9.0.1 mtap0 ── Master ── vhostpci-host ── vhostpci-guest ── vp0 10.9.0.2
         (threads of the test)   (process)        (process, --socket)
"""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.process.master import TAP as MASTER_TAP
from tests.process.master import Master, Ram
from tests.process.program import Program, run
from tests.vm.netns import Namespace
from tests.waiting import wait_for

MASTER_ADDRESS = "10.9.0.1"
SLAVE_ADDRESS = "10.9.0.2"
SLAVE_TAP = "vp0"
MEMORY = 32 << 20
ARENA = ("--memory", f"{MEMORY >> 20}M")
ATTACH = ("--mode", "attach")


class Lab:
    """Everything in the drawing, each part started when the test says so."""

    def __init__(self, directory: Path) -> None:
        self.run_dir = directory / "run"
        self.memory_dir = Path("/dev/shm") / f"vhostpci-test-{os.getpid()}"
        self._logs = directory
        self._stack = ExitStack()
        self.slave = self._stack.enter_context(Namespace())
        self._programs: list[Program] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for program in reversed(self._programs):
            program.close()
        self._stack.close()
        for path in self.memory_dir.glob("*"):
            path.unlink()
        if self.memory_dir.exists():
            self.memory_dir.rmdir()

    def _start(self, name: str, argv: list[str]) -> Program:
        log = self._logs / f"{name}-{len(self._programs)}.log"
        program = Program(argv, log)
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
            *options,
        ]

    def start_daemon(self, *options: str) -> Program:
        """Start the daemon, and wait until it serves."""
        daemon = self._start("daemon", self.daemon_argv(*options))
        wait_for(
            lambda: daemon.process.poll() is not None or self.daemon_serves(),
            "the daemon serves",
        )
        assert daemon.process.poll() is None, daemon.log
        return daemon

    def start_fleet(self, *names: str) -> Program:
        """Start a daemon with many devices, and wait until it serves them."""
        file = self._logs / "vms.toml"
        file.write_text(
            f'run-dir = "{self.run_dir}"\nmemory-dir = "{self.memory_dir}"\n'
            + "".join(f'[device.{name}]\nmemory = "{MEMORY}"\n' for name in names)
        )
        command = (sys.executable, "-m", "vhostpci_host", "run", "--config", str(file))
        daemon = self._start("daemon", [*command])
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
        return json.loads(self.run_host("status", "net0", "-j").stdout)

    def session(self) -> dict[str, Any]:
        """Return what a test that only sends packets must leave as it found it.

        That is the programs that run, the master's memory, and the rings with their
        states; not their counters, and not programs that the test has started.
        """
        status = self.status()
        return {
            "programs": [
                program.process.pid
                for program in self._programs
                if program.process.poll() is None
            ],
            "regions": status["master"]["regions"],
            "state": status["state"],
            "rings": [(ring["queue"], ring["state"]) for ring in status["rings"]],
            "windows": status["windows"],
            "files": self.files(),
        }

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
        self, memory: Ram | None = None, *, queue_pairs: int = 1
    ) -> Master:
        """Start a master, whose driver is not loaded yet, and set up its interface.

        Its memory is the arena, if nothing is said.
        """
        if memory is None:
            memory = Ram.of_arena(self.arena, MEMORY)
        socket = self.run_dir / "net0.vhost-user"
        master = Master(socket, memory, queue_pairs=queue_pairs)
        self._stack.callback(master.close)
        ip("addr", "add", f"{MASTER_ADDRESS}/24", "dev", MASTER_TAP)
        ip("link", "set", MASTER_TAP, "up")
        return master

    # The slave.

    def agent_argv(self, *options: str) -> list[str]:
        """The command of an agent on the daemon's socket."""
        socket = str(self.run_dir / "net0.ivshmem")
        return [
            *self.slave.prefix,
            *(sys.executable, "-m", "vhostpci_guest", "run", "--socket", socket),
            *("--tap", SLAVE_TAP, *options),
        ]

    def start_agent(self, *options: str) -> Program:
        """Start the agent."""
        address = ("--address", f"{SLAVE_ADDRESS}/24")
        return self._start("agent", self.agent_argv(*address, *options))

    def run_in_slave(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the slave's network namespace."""
        return run(*self.slave.prefix, *argv)

    def carrier(self) -> str | None:
        """The state of the slave's TAP: `UP`, `NO-CARRIER` (or down); None: no TAP."""
        done = self.run_in_slave("ip", "-o", "link", "show", SLAVE_TAP)
        if done.returncode:
            return None
        return "UP" if "LOWER_UP" in done.stdout else "NO-CARRIER"

    def wait_carrier(self, state: str | None) -> None:
        """Wait until the slave's TAP is in that state."""
        wait_for(lambda: self.carrier() == state, f"slave's TAP is {state}")

    def ping_from_master(self, count: int = 5, *options: str) -> int:
        """Ping the slave; return how many came back."""
        return received(run(*PING, "-c", str(count), *options, SLAVE_ADDRESS))

    def ping_from_slave(self, count: int = 5, *options: str) -> int:
        """Ping the master; return how many came back."""
        command = (*PING, "-c", str(count), *options, MASTER_ADDRESS)
        return received(self.run_in_slave(*command))


# Once replies have come, ping waits one interval for the last one, not -W.
PING = ("ping", "-n", "-q", "-i", "0.1", "-W", "2")


def received(done: subprocess.CompletedProcess[str]) -> int:
    """How many packets a ping got back."""
    summary = [line for line in done.stdout.splitlines() if "received" in line]
    assert summary, done.stdout + done.stderr
    return int(summary[0].split(",")[1].split()[0])


def ip(*words: str) -> None:
    """Run ip(8) in the namespace of this thread."""
    done = run("ip", *words)
    assert not done.returncode, done.stderr
