# SPDX-License-Identifier: Apache-2.0
"""What the checks of `vhostpci-host doctor` may look at, and what they share."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from vhostpci_shared.findings import CannotLook, Seen, check_of_each
from vhostpci_shared.machine import Machine

from ..interfaces import FAILED, Json
from .command_line import CommandLine

ROLES = ("master", "slave")
BACKEND, VHOST_USER = "backend", "vhost-user"
"""What says of a card that was asked for that its back-end is another process."""


@dataclass(frozen=True, slots=True)
class Silent:
    """A control socket at which no daemon answers."""

    path: str
    why: str
    killed: bool = False
    """No process listens there: a daemon that was killed has left the socket."""
    forbidden: bool = False
    """This user may not ask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypervisor:
    """The machine, and what its daemons say."""

    machine: Machine
    run_dir: str
    version: str
    """Of this program."""
    program: str = "vhostpci-host"
    """Its path."""
    devices: tuple[Json, ...] = ()
    """The status of each device."""
    silent: tuple[Silent, ...] = ()
    qemu: str | None = None
    """The QEMU that runs the VMs, or will; None: there is none in PATH."""
    memdevs: Callable[[], list[Json]] | None = None
    """Asks a master's QEMU for its memory; None: its monitor is not known."""
    plugged: Callable[[], list[Json]] | None = None
    """Asks it for the devices that were plugged, at its start or later."""
    lines: dict[int, CommandLine | None] = field(default_factory=dict)
    """The command lines that were read."""

    @property
    def served(self) -> list[Json]:
        """The devices that a daemon serves."""
        return [one for one in self.devices if one["state"] != FAILED]

    def line(self, pid: int) -> CommandLine | None:
        """Return the command line of a process, if it is a QEMU.

        Raises:
            OSError: it has ended, or is hidden.
        """
        if pid not in self.lines:
            line = CommandLine.parse(self.machine.text(f"/proc/{pid}/cmdline"))
            self.lines[pid] = line if _is_qemu(line.program) else None
        return self.lines[pid]

    def qemus(self) -> Iterator[tuple[int, CommandLine]]:
        """Yield all QEMUs that run on the machine."""
        for name in self.machine.names("/proc"):
            if name.isdecimal():
                try:
                    line = self.line(int(name))
                except OSError:
                    continue  # it has ended since, or is hidden from us
                if line is not None:
                    yield int(name), line

    def peer_line(self, device: Json, role: str) -> tuple[int, CommandLine]:
        """Return the QEMU that is a device's master or slave.

        Raises:
            CannotLook: it is not connected, or is no QEMU.
        """
        if device[role] is None:
            raise CannotLook(f"no {role} is connected")
        pid: int = device[role]["pid"]
        line = self.line(pid) if pid else None
        if line is None:
            raise CannotLook(f"the {role} (pid {pid}) is no QEMU that we can see")
        return pid, line


def _is_qemu(program: str) -> bool:
    name = program.rpartition("/")[2]
    return name.startswith("qemu-system-") or name in ("qemu-kvm", "kvm")


def each_device(
    look: Callable[[Hypervisor, Json], Iterable[Seen]],
) -> Callable[[Hypervisor], Iterator[Seen]]:
    """Return the check that looks at each device that is served."""
    return check_of_each(
        look,
        lambda host: host.served,
        lambda device: str(device["name"]),
        lambda _host: "no daemon here has told us of a device",
    )


def mib(size: int) -> str:
    """Return a size for people."""
    # Window 0 of attach mode has the metadata alone: 64 KiB.
    return f"{size >> 20} MiB" if size >> 20 or not size else f"{size >> 10} KiB"


def process(pid: int) -> str:
    """Return where the kernel tells of a process."""
    return f"/proc/{pid}"
