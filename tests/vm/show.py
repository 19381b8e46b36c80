# SPDX-License-Identifier: Apache-2.0
"""What the demos print; and VMs that stay up until Ctrl-C."""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.vm import qemu
from tests.vm.data_planes import RING
from tests.vm.harness import Vm
from tests.vm.image import CHECKOUT
from tests.vm.scene import State
from tests.vm.traffic import Ping

LOGS = CHECKOUT / "logs" / "demo"

# What a person can attach to a VM that --keep left running; Ctrl-] ends it.
CONSOLE = "socat -,rawer,escape=0x1d UNIX-CONNECT:{path}"


@dataclass(slots=True)
class Outcome:
    """What both demos report; the fields have the names of their JSON."""

    bind: str
    data_plane: str = RING
    ok: bool = False
    error: str | None = None
    qemu_version: str = field(default_factory=qemu.version)
    accelerator: str = "kvm" if qemu.has_kvm() else "tcg"
    kernel: str | None = None
    seconds: float = 0.0

    def fail(self, error: Exception) -> None:
        """Note the first error."""
        self.error = self.error or f"{type(error).__name__}: {error}"

    def decide(self, seconds: float, *, good: bool) -> None:
        """Note how long the demo took, and whether its results are good."""
        self.seconds = self.seconds or round(seconds, 1)
        self.ok = self.error is None and good

    def head(self, slave: str) -> str:
        """Return the versions of QEMU and of the slave's kernel, and how it serves."""
        return (
            f"QEMU {self.qemu_version} ({self.accelerator}), Linux {self.kernel}, "
            f"{slave} bound by {self.bind}, data plane {self.data_plane}"
        )


class Progress:
    """Prints a line when a step begins, with the time since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, text: str, why: str = "") -> None:
        """Print that a step begins; `why` says what it shows, and is for people."""
        print(f"[{self.seconds():5.1f} s] {text}", flush=True)

    def set(self, state: State, *parts: str) -> None:
        """Note the state of parts of the drawing, of which there is none here."""

    def follow(self, count: Callable[[], Mapping[str, int]]) -> None:
        """Note where packets are counted, which are not shown here."""

    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start


class Silent(Progress):
    """Prints nothing."""

    def __call__(self, text: str, why: str = "") -> None:
        """Print nothing."""


SILENT = Silent()


def leave_running(vms: Sequence[Vm]) -> None:
    """Print how to get a console on each VM, and wait for Ctrl-C."""
    print("\nThe VMs are up.  A console on each (Ctrl-] leaves it):")
    for vm in vms:
        command = CONSOLE.format(path=vm.run_dir / "console")
        print(f"  {vm.name:6}  {command}")
    print("Ctrl-C here ends them.", flush=True)
    signal.pause()


def table(head: str, rows: Sequence[tuple[str, str]], *, ok: bool) -> str:
    """Return a heading, a line for each result, and `ok` or `FAILED`."""
    lines = [head, *(f"  {name:32}{text}" for name, text in rows)]
    return "\n".join([*lines, "ok" if ok else "FAILED"])


def ping_text(ping: Ping | None) -> str:
    """Return how many pings were answered, and the average time."""
    if not ping:
        return "-"
    average = "" if ping.rtt_ms_avg is None else f", {ping.rtt_ms_avg:.2f} ms"
    return f"{ping.received} of {ping.sent} came back{average}"


def rate_text(rate: float | None) -> str:
    """Return a throughput as text."""
    return "-" if rate is None else f"{rate:.0f} Mbit/s"
