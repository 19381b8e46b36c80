# SPDX-License-Identifier: Apache-2.0
"""A virtual machine for as long as a ``with`` block takes.

    with Vm("master", image, logs=logs, args=[...]) as vm:
        vm.run("ping -c 1 10.77.0.2")

QEMU dies with the process that started it, however that ends, and each wait
has a limit.  The output of the guest's console and of QEMU is in ``logs``.
"""

import base64
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeVar

from tests.vm import log_end, qemu
from tests.vm.architecture import AMD64
from tests.vm.channel import Channel, GuestError, GuestGoneError
from tests.vm.image import Image
from tests.vm.netns import Namespace
from tests.vm.patience import Patience
from tests.vm.qmp import Qmp

T = TypeVar("T")

BOOT_TIMEOUT = 90.0

BY_ITS_CLOCK = 4
"""How many times longer than its limit a command may run by the guest's clock.

The guest's clock goes on while QEMU waits for a processor, and the guest cannot tell.
"""

# PDEATHSIG is sent when the *thread* that started a process ends: start VMs from
# the main thread.
DIE_WITH_US = ["setpriv", "--pdeathsig", "KILL"]


@dataclass(frozen=True, slots=True)
class Result:
    """The exit status and the output of a command in the guest."""

    rc: int | None
    stdout: str
    stderr: str


class Job:
    """A command that runs in the background in the guest."""

    def __init__(self, vm: "Vm", number: int, log: str) -> None:
        self._vm = vm
        self._number = number
        self._log = log

    def poll(self) -> int | None:
        """Return its exit status, None while it runs."""
        return self.wait(0)

    def wait(self, timeout: float) -> int | None:
        """Return its exit status, None if it still runs after ``timeout``."""
        answer = self._vm.call("wait", timeout=timeout, job=self._number, limit=timeout)
        rc: int | None = answer["rc"]
        return rc

    def wait_said(self, *texts: str, timeout: float = 60) -> None:
        """Wait until it has written all of these texts, in any order.

        ``timeout`` is in seconds of the guest's own time.
        """
        self._vm.wait_until(
            lambda: all(text in self.output() for text in texts),
            lambda: f"{texts} in {self.output()!r}",
            timeout,
        )

    def send(self, number: signal.Signals) -> None:
        """Send a Unix signal to the command."""
        self._vm.call("signal", timeout=5, job=self._number, number=int(number))

    def stop(self, timeout: float = 60) -> int | None:
        """End it by SIGTERM and return its exit status; None if it does not end."""
        self.send(signal.SIGTERM)
        return self.wait(timeout)

    def output(self) -> str:
        """Return what it has written so far."""
        answer = self._vm.call("get", timeout=5, path=self._log)
        return base64.b64decode(answer["data"]).decode(errors="backslashreplace")


class Vm:
    """One QEMU and the guest in it."""

    def __init__(
        self,
        name: str,
        image: Image | None,  # none: it boots from a disk
        *,
        logs: Path,
        args: Sequence[str] = (),
        memory: str = "512M",
        cpus: int = 1,
        iommu: bool = False,
        chipset: str | None = None,
        defaults: bool = False,
        namespace: Namespace | None = None,
        program: str | None = None,
    ) -> None:
        self.name = name
        architecture = image.architecture if image else AMD64
        foreign = architecture is not AMD64
        self._program = program or (architecture.program if foreign else None)
        self.kernel = ""
        self.serial_log = logs / f"{name}.serial.log"
        self._qemu_log = logs / f"{name}.qemu.log"
        self._namespace = namespace
        self._options = [
            *qemu.machine(
                image, cpus=cpus, iommu=iommu, chipset=chipset, defaults=defaults
            ),
            *(() if "-m" in args else ("-m", memory)),
            *args,
        ]
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._jobs = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start QEMU; :meth:`wait_ready` then waits for the guest."""
        self._qemu_log.parent.mkdir(parents=True, exist_ok=True)
        directory = TemporaryDirectory(prefix="vhostpci-")
        self.run_dir = Path(self._stack.enter_context(directory))
        argv = [*self._command(), *qemu.lines(self.run_dir, self.serial_log)]
        prefix = self._namespace.prefix if self._namespace else []
        with self._qemu_log.open("ab") as log:
            log.write(f"{shlex.join(argv)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                [*DIE_WITH_US, *prefix, *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C must not reach QEMU: the tests end the VMs in order.
                start_new_session=True,
            )

    def _command(self) -> list[str]:
        """Return the command that starts QEMU, but for its ways to this harness."""
        return [self._program or qemu.binary(), "-name", self.name, *self._options]

    def close(self) -> None:
        """Kill QEMU if it still runs, and remove its sockets."""
        self.kill()
        self._stack.close()

    def kill(self) -> None:
        """Kill QEMU if it still runs; :meth:`start` may follow."""
        if self._process:
            self._process.kill()
            self._process.wait()
        if self._channel:
            self._channel.close()
            self._channel = None

    def wait_ready(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Wait until the guest takes commands."""
        try:
            if not self._channel:
                self._channel = Channel(
                    self.run_dir / "test", timeout=timeout, patience=self.patience
                )
            self._wait_boot(timeout)
        except GuestGoneError as error:
            raise GuestGoneError(f"{self.name}: {error}\n{self.last_words()}") from None

    def reboot(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Reboot the guest and wait until it takes commands again."""
        self.call("reboot", timeout=5)
        self.wait_rebooted(timeout)

    def wait_rebooted(self, timeout: float = BOOT_TIMEOUT) -> None:
        """Wait until the guest, which was told to reboot, takes commands again."""
        self._wait_boot(timeout)

    def run(
        self, command: str | Sequence[str], *, timeout: float = 30, check: bool = True
    ) -> Result:
        """Run a command, or shell text, to its end.

        ``check`` turns an exit status other than 0 into a :class:`GuestError`.
        """
        argv = _argv(command)
        limit = timeout * BY_ITS_CLOCK
        answer = self.call("run", timeout=limit, argv=argv, limit=limit)
        result = Result(answer["rc"], answer["stdout"], answer["stderr"])
        if check and result.rc != 0:
            ended = "took too long" if result.rc is None else f"returned {result.rc}"
            raise GuestError(
                f"{self.name}: {command}: {ended}\n{result.stdout}{result.stderr}"
            )
        return result

    def wait_for(self, condition: str, timeout: float = 30) -> None:
        """Wait until shell text succeeds, for `timeout` seconds of the guest's time."""
        self.wait_until(
            lambda: self.run(condition, check=False).rc == 0,
            lambda: condition,
            timeout,
        )

    def wait_until(
        self,
        condition: Callable[[], T],
        what: Callable[[], object],
        timeout: float = 60,
    ) -> T:
        """Wait until `condition` is true, for `timeout` seconds of the guest's time.

        Return what it returned in the end.

        A failure tells what `what` returns, and the guest's last lines.  A condition
        that takes the guest long to tell is looked at less often: the guest needs its
        processor for what is waited for.
        """
        patience = self.patience(timeout)
        looked = time.monotonic()
        while not (found := condition()):
            if patience.is_over():
                raise GuestError(
                    f"{self.name}: not within {patience}: {what()}\n{self.last_words()}"
                )
            time.sleep(max(time.monotonic() - looked, 0.1))
            looked = time.monotonic()
        return found

    def reconnect(self, timeout: float = 60) -> None:
        """Connect to the guest's command server once more."""
        self._ready_channel().close()
        self._channel = Channel(
            self.run_dir / "test", timeout=timeout, patience=self.patience
        )

    def patience(self, seconds: float) -> Patience:
        """Start a limit that counts the time in which the guest could run."""
        process = self._process
        if process:
            return Patience(seconds, lambda: process.pid)
        # libvirt runs this QEMU: nothing shows how long it waits for a processor.
        return Patience(seconds * BY_ITS_CLOCK, lambda: None)

    def spawn(self, command: str | Sequence[str]) -> Job:
        """Start a command in the background; its output goes to a file there."""
        self._jobs += 1
        log = f"/run/job-{self._jobs}.log"
        answer = self.call("spawn", timeout=10, argv=_argv(command), log=log)
        return Job(self, answer["job"], log)

    def put(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file in the guest."""
        encoded = base64.b64encode(data).decode()
        self.call("put", timeout=30, path=path, data=encoded, mode=mode)

    def get(self, path: str) -> bytes:
        """Read a file of the guest."""
        return base64.b64decode(self.call("get", timeout=30, path=path)["data"])

    def peek(self, path: str) -> str | None:
        """Return the text of a file of the guest; None if none can be read now.

        The command server reads it: no program has to start, as it has for `run`.
        """
        text: str | None = self.call("peek", timeout=30, path=path)["text"]
        return text

    def has_interface(self, name: str) -> bool:
        """Whether the guest has this network interface."""
        return self.peek(f"/sys/class/net/{name}/ifindex") is not None

    def has_carrier(self, name: str) -> bool:
        """Whether this network interface is there, is up, and has a carrier."""
        return self.peek(f"/sys/class/net/{name}/carrier") == "1\n"

    def agents(self) -> list[dict[str, Any]]:
        """Return the devices of all agents in the guest, by their status sockets.

        `vhostpci-guest status` says the same; this is for what asks often.
        """
        answer = self.call("ask", timeout=30, directory="/run/vhostpci-guest")
        texts: dict[str, str] = answer["answers"]
        return [device for text in texts.values() for device in json.loads(text)]

    def call(self, op: str, *, timeout: float, **arguments: Any) -> dict[str, Any]:
        """Have the guest's command server (guest/server.py) serve a request."""
        try:
            return self._ready_channel().call(op, timeout=timeout, **arguments)
        except GuestGoneError as error:
            raise GuestGoneError(f"{self.name}: {error}\n{self.last_words()}") from None
        except GuestError as error:
            raise GuestError(f"{self.name}: {error}\n{self.last_words()}") from None

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Have QEMU's monitor execute a command; returns what it returned."""
        with Qmp(self.run_dir / "qmp") as monitor:
            return monitor.execute(command, arguments)

    @property
    def pid(self) -> int:
        """The process ID of QEMU."""
        assert self._process, "not started"
        return self._process.pid

    def cpu_seconds(self) -> float:
        """Processor time of QEMU's main thread, which runs its event loop."""
        return processor_time(self.pid)

    def is_running(self) -> bool:
        """Return whether QEMU has not ended."""
        return self._process is not None and self._process.poll() is None

    def wait_end(self, timeout: float) -> bool:
        """Wait until QEMU has ended by itself; return whether it has."""
        try:
            return self._process is None or self._process.wait(timeout) is not None
        except subprocess.TimeoutExpired:
            return False

    def qemu_said(self) -> str:
        """Return what QEMU has written so far."""
        return self._qemu_log.read_text(errors="backslashreplace")

    def last_words(self) -> str:
        """Return the last lines of QEMU's and the guest's logs, and their paths."""
        texts = []
        for log in (self._qemu_log, self.serial_log):
            if log.exists():
                text = log.read_text(errors="backslashreplace")
                texts += [f"--- {log}", *log_end.lines(text)]
        return "\n".join(texts)

    def _wait_boot(self, timeout: float) -> None:
        hello = self._ready_channel().wait_boot(timeout)
        self.kernel = hello["kernel"]

    def _ready_channel(self) -> Channel:
        if not self._channel:
            raise GuestError(f"{self.name}: not ready yet: call wait_ready()")
        return self._channel


def processor_time(pid: int) -> float:
    """Seconds of processor time that a process's main thread has taken (proc(5))."""
    return _processor_time(Path(f"/proc/{pid}/task/{pid}/stat"))


def processor_time_of_all(pid: int) -> float:
    """Seconds of processor time that all threads of a process have taken."""
    return _processor_time(Path(f"/proc/{pid}/stat"))


def _processor_time(stat: Path) -> float:
    user, system = stat.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _argv(command: str | Sequence[str]) -> list[str]:
    return ["sh", "-c", command] if isinstance(command, str) else [*command]
