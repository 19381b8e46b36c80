# SPDX-License-Identifier: Apache-2.0
"""The host daemon, run from its wheels for as long as a ``with`` block takes."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.vm import qemu, wheels
from tests.vm.harness import DIE_WITH_US

START_TIMEOUT = 15.0


class DaemonError(Exception):
    """The daemon did not do as told."""


class Daemon:
    """``vhostpci-host run NAME`` with directories of its own.

    With ``memory`` it makes the master's memory; without, the master brings its own.
    With ``slave_qmp`` it plugs into the slave VM at that monitor.
    """

    def __init__(
        self,
        name: str,
        *,
        logs: Path,
        memory: str | None = None,
        queue_pairs: int = 1,
        slave_qmp: Path | None = None,
    ) -> None:
        self.name = name
        self.log = logs / f"{name}.daemon.log"
        self._mode = ["--memory", memory] if memory else ["--mode", "attach"]
        self._mode += ["--slave-qmp", str(slave_qmp)] if slave_qmp else []
        self._options = [*self._mode, "--queue-pairs", str(queue_pairs)]
        self._environment = os.environ | {"PYTHONPATH": str(wheels.host_packages())}

    def __enter__(self) -> Self:
        self._sockets = tempfile.TemporaryDirectory(prefix="vhostpci-")
        self._arena = tempfile.TemporaryDirectory(prefix="vhostpci-", dir="/dev/shm")
        self.run_dir, self.memory_dir = Path(self._sockets.name), Path(self._arena.name)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*DIE_WITH_US, *self._command("run"), *self._options],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            self._wait_serving()
        except DaemonError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._sockets.cleanup()
        self._arena.cleanup()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def qemu_args(self, role: str, *options: str) -> list[str]:
        """The arguments that ``qemu-args --role ROLE`` prints."""
        intx = ["--tcg-7.2"] if role == "master" and qemu.needs_intx() else []
        output = self._output("qemu-args", "--role", role, "--json", *intx, *options)
        args: list[str] = json.loads(output)
        return args

    def xml(self, role: str, *options: str) -> str:
        """The domain that ``xml --role ROLE`` prints."""
        kind = "kvm" if qemu.has_kvm() else "qemu"
        intx = ["--tcg-7.2"] if role == "master" and qemu.needs_intx() else []
        return self._output("xml", "--role", role, "--type", kind, *intx, *options)

    def card(self) -> list[str]:
        """The master's arguments without those for its memory (attach mode)."""
        args = self.qemu_args("master", "--mode", "attach", "--memory", "1G")
        pairs = zip(args[::2], args[1::2], strict=True)
        of_memory = ("-m", "-machine", "-object")
        return [word for pair in pairs if pair[0] not in of_memory for word in pair]

    def wait_state(self, state: str, timeout: float = 20) -> None:
        """Wait until the device's status says that."""
        deadline = time.monotonic() + timeout
        while (said := self.status())["state"] != state:
            if time.monotonic() > deadline:
                raise DaemonError(f"not {state!r}: {said}\n{self.output()}")
            time.sleep(0.1)

    def status(self) -> Any:
        """What ``status -j`` prints."""
        return json.loads(self._output("status", "-j"))

    def output(self) -> str:
        """What it has logged so far."""
        return self.log.read_text(errors="backslashreplace")

    def is_running(self) -> bool:
        """Whether it still is."""
        return self._process.poll() is None

    def _command(self, verb: str) -> list[str]:
        return [
            *(sys.executable, "-m", "vhostpci_host", verb, self.name),
            *("--run-dir", str(self.run_dir)),
            *(("--memory-dir", str(self.memory_dir)) if verb == "run" else ()),
        ]

    def _output(self, verb: str, *options: str) -> str:
        done = subprocess.run(
            [*self._command(verb), *options],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=20,
        )
        if done.returncode:
            raise DaemonError(f"vhostpci-host {verb}: {done.stderr}")
        return done.stdout

    def _wait_serving(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        sockets = [
            self.run_dir / f"{self.name}.{kind}" for kind in ("vhost-user", "ivshmem")
        ]
        while not all(path.exists() for path in sockets):
            if not self.is_running() or time.monotonic() > deadline:
                raise DaemonError(f"vhostpci-host does not serve:\n{self.output()}")
            time.sleep(0.05)
