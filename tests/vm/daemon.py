# SPDX-License-Identifier: Apache-2.0
"""The host daemon, run from its wheels for as long as a ``with`` block takes.

`Daemon` has one device, `Fleet` those of a file and those that are added.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from tests import daemon_processes
from tests.findings import Findings, parse
from tests.vm import qemu, wheels
from tests.waiting import PROCESS_TIMEOUT, wait_for

START_TIMEOUT = 60.0
CARRIER_STAYS = "off"
"""Without KVM, on a loaded machine, an agent in a VM may be silent for seconds."""
INSTALLED = os.environ.get("VHOSTPCI_HOST")
"""A program that is installed, as from a package, in place of the checkout's."""
COMMAND = [INSTALLED] if INSTALLED else [sys.executable, "-m", "vhostpci_host"]
# The keeper passes it on to the daemon, which would go on without the keeper.
DIE_WITH_US = ["setpriv", "--pdeathsig", "TERM"]


class DaemonError(Exception):
    """The daemon did not start, or refused a command."""


class Device:
    """One device of a daemon, reached through our own command line.

    ``command`` runs ``vhostpci-host`` with some words, and returns what it prints.
    ``program`` is the QEMU of its VMs, if it is not the usual one.
    """

    def __init__(
        self, name: str, command: Callable[..., str], program: str | None = None
    ) -> None:
        self.name = name
        self._ask = command
        self._program = program

    def qemu_args(self, role: str, *options: str) -> list[str]:
        """The arguments that ``qemu-args --role ROLE`` prints."""
        words = ["--role", role, "--json", *self._how_vms_run(), *options]
        args: list[str] = json.loads(self._ask("qemu-args", self.name, *words))
        return args

    def kernel_words(self, *options: str) -> str:
        """The words that ``qemu-args --kernel-args`` prints for a confined master."""
        words = ["--role", "master", "--kernel-args", *self._how_vms_run(), *options]
        return self._ask("qemu-args", self.name, *words).strip()

    def master_check(self, *options: str) -> str:
        """The script that ``master-check`` prints."""
        return self._ask("master-check", self.name, *options)

    def xml(self, role: str, *options: str) -> str:
        """The domain that ``xml --role ROLE`` prints."""
        kind = "kvm" if qemu.has_kvm() else "qemu"
        program = self._program or qemu.binary()
        words = ["--role", role, "--type", kind, "--qemu", program, *options]
        return self._ask("xml", self.name, *words)

    def _how_vms_run(self) -> list[str]:
        tcg = [] if qemu.has_kvm() else ["--tcg"]
        return ["--qemu", self._program or qemu.binary(), *tcg]

    def card(self, *options: str) -> list[str]:
        """Return the master's arguments without those for its memory (attach mode)."""
        args = self.qemu_args("master", "--mode", "attach", "--memory", "1G", *options)
        pairs = zip(args[::2], args[1::2], strict=True)
        of_memory = ("-m", "-machine", "-object", "-numa")
        return [word for pair in pairs if pair[0] not in of_memory for word in pair]

    def status(self) -> Any:
        """What ``status -j`` prints."""
        return json.loads(self._ask("status", self.name, "-j"))

    def doctor(self, *options: str) -> Findings:
        """What ``doctor`` finds; it must find no error."""
        words = ("-j", "--qemu", self._program or qemu.binary(), *options)
        return parse(self._ask("doctor", self.name, *words))

    def wait_state(self, state: str, timeout: float = 60) -> None:
        """Wait until the device has this state."""
        wait_for(lambda: self.status()["state"] == state, self.status, timeout)


class _Program:
    """The daemon's process, with a run directory and a memory directory."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._environment = dict(os.environ)
        if not INSTALLED:
            self._environment["PYTHONPATH"] = str(wheels.host_packages())

    def _start(self) -> tuple[list[str], list[str]]:
        """Return the words after `run`, and the sockets that exist once it serves."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._sockets = tempfile.TemporaryDirectory(prefix="vhostpci-")
        self._arena = tempfile.TemporaryDirectory(prefix="vhostpci-", dir="/dev/shm")
        self.run_dir, self.memory_dir = Path(self._sockets.name), Path(self._arena.name)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._launch()
        except DaemonError:
            self.__exit__(None, None, None)
            raise
        return self

    def _launch(self, *more: str) -> None:
        words, sockets = self._start()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*DIE_WITH_US, *COMMAND, "run", *words, *more],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_serving(sockets)

    def restart(self, number: signal.Signals, *more: str) -> None:
        """End it by a signal, and start it again in the same directories.

        Args:
            number: the signal.
            more: options that only the next daemon has.
        """
        daemon_processes.send(self.pid, number)
        self._process.wait(PROCESS_TIMEOUT)
        # Sockets that it leaves behind would look as if its successor served already.
        for socket in self.run_dir.iterdir():
            socket.unlink()
        self._launch(*more)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(PROCESS_TIMEOUT)
        except subprocess.TimeoutExpired:
            daemon_processes.send(self.pid, signal.SIGKILL)
            self._process.wait()
        self._sockets.cleanup()
        self._arena.cleanup()

    @property
    def pid(self) -> int:
        """The process that was started: the daemon's keeper."""
        return self._process.pid

    @property
    def serving(self) -> int:
        """The daemon's process."""
        return daemon_processes.serving(self.pid)

    def output(self) -> str:
        """What it has logged so far."""
        return self.log.read_text(errors="backslashreplace")

    def wait_said(self, *texts: str) -> None:
        """Wait until it has logged all of these texts: a thread writes its log."""
        wait_for(lambda: all(text in self.output() for text in texts), self.output)

    def is_running(self) -> bool:
        """Return whether the process has not ended."""
        return self._process.poll() is None

    def control(self, name: str) -> Path:
        """The control socket of a device."""
        return self.run_dir / f"{name}.control"

    def command(self, verb: str, *words: str) -> str:
        """Run a command of `vhostpci-host` to its end; return what it prints."""
        done = subprocess.run(
            [*COMMAND, verb, *words, "--run-dir", str(self.run_dir)],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=90,
        )
        if done.returncode:
            raise DaemonError(f"vhostpci-host {verb}: {done.stdout}{done.stderr}")
        return done.stdout

    def _wait_serving(self, sockets: Sequence[str]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not all((self.run_dir / name).exists() for name in sockets):
            if not self.is_running() or time.monotonic() > deadline:
                raise DaemonError(f"vhostpci-host does not serve:\n{self.output()}")
            time.sleep(0.05)


class Daemon(_Program, Device):
    """``vhostpci-host run NAME``.

    With ``memory`` it makes the master's memory; without, the master brings its own.
    With ``slave_qmp`` it plugs into the slave VM at that monitor.
    With ``connect`` the master listens there, and the daemon connects.
    With ``carrier_grace`` the master's card has no carrier without an agent.
    With ``features`` the master is offered no more than those.
    With ``confined``, a bounce pool's size, the slave has only the shared region.
    """

    def __init__(
        self,
        name: str,
        *,
        logs: Path,
        memory: str | None = None,
        confined: str | None = None,
        queue_pairs: int = 1,
        slave_qmp: Path | None = None,
        connect: Path | None = None,
        program: str | None = None,
        carrier_grace: str = CARRIER_STAYS,
        features: str | None = None,
    ) -> None:
        _Program.__init__(self, logs / f"{name}.daemon.log")
        Device.__init__(self, name, self.command, program)
        self._options = ["--memory", memory] if memory else ["--mode", "attach"]
        self._options += ["--confined", confined] if confined else []
        self._options += ["--slave-qmp", str(slave_qmp)] if slave_qmp else []
        self._options += ["--queue-pairs", str(queue_pairs)]
        self._options += ["--connect", str(connect)] if connect else []
        self._sockets_made = [*(() if connect else ("vhost-user",)), "ivshmem"]
        self._options += ["--carrier-grace", carrier_grace]
        self._options += ["--features", features] if features else []

    def replace(self) -> None:
        """Kill the process that serves, and wait until its successor does."""
        before = self.status()["daemon"]["pid"]
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: self.status()["daemon"]["pid"] != before, self.output)

    def _start(self) -> tuple[list[str], list[str]]:
        where = ["--run-dir", str(self.run_dir), "--memory-dir", str(self.memory_dir)]
        sockets = [f"{self.name}.{kind}" for kind in self._sockets_made]
        return [self.name, *where, *self._options], sockets


class Fleet(_Program):
    """``vhostpci-host run --config FILE``: devices that are plugged into one slave VM.

    The masters bring their own memory.
    With ``features`` they are offered no more than those.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        logs: Path,
        slave_qmp: Path,
        program: str | None = None,
        features: str | None = None,
    ) -> None:
        super().__init__(logs / "daemon.log")
        self._features = features
        self._names = names
        self._qemu = program
        self._slave_qmp = slave_qmp

    def _start(self) -> tuple[list[str], list[str]]:
        lines = [f'run-dir = "{self.run_dir}"']
        lines += [f'carrier-grace = "{CARRIER_STAYS}"']
        lines += [f'features = "{self._features}"'] if self._features else []
        for name in self._names:
            lines += [f"[device.{name}]", 'mode = "attach"']
            lines += [f'slave-qmp = "{self._slave_qmp}"']
        file = self.run_dir / "vhostpci.toml"
        file.write_text("\n".join([*lines, ""]))
        return ["--config", str(file)], [f"{name}.vhost-user" for name in self._names]

    def device(self, name: str) -> Device:
        """Return the device of this name, which is in the file or was added."""
        return Device(name, self.command, self._qemu)

    def add(self, name: str) -> Device:
        """Add a device to the running daemon."""
        options = ["--mode", "attach", "--slave-qmp", str(self._slave_qmp)]
        options += ["--features", self._features] if self._features else []
        self.command("add", name, *options)
        return self.device(name)

    def remove(self, name: str) -> None:
        """Remove a device from the running daemon."""
        self.command("remove", name)
