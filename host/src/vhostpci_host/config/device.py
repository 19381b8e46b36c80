# SPDX-License-Identifier: Apache-2.0
"""What a device is configured to be, checked before anything is made."""

import grp
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from vhostpci_shared import metadata as md

from ..errors import HostError

RUN_DIR = Path("/run/vhostpci")
MEMORY_DIR = Path("/dev/shm/vhostpci")
MAX_QUEUE_PAIRS = md.MAX_RINGS // 2
MIB = 2**20
MAX_MEMORY = 2**44
MAX_SUN_PATH = 107
"""Bytes that `struct sockaddr_un` has for a path (unix(7)), less the NUL."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# int() refuses more than 4300 digits with a plain ValueError: take no more than any
# size that MAX_MEMORY allows could need.
_SIZE = re.compile(r"(\d{1,20})([KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)
_COUNT = re.compile(r"\d{1,20}", re.ASCII)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def check_name(text: str) -> str:
    """Return `text` if it can name a device, its files and its QEMU objects.

    Raises:
        HostError: it cannot.
    """
    if not _NAME.fullmatch(text):
        raise HostError(
            f"name {text!r}: use 1 to 64 letters, digits, '.', '_' and '-', "
            "and start with a letter or digit"
        )
    return text


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 512M or 4G.

    Raises:
        HostError: it is none, or none that a VM's memory can have.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise HostError(f"memory {text!r}: write a size such as 512M or 4G")
    size = int(match[1]) * _UNITS[match[2].upper()]
    if not 0 < size <= MAX_MEMORY or size % MIB:
        raise HostError(
            f"memory {text!r} is {size} bytes: it must be a multiple of 1M, "
            f"and at most {MAX_MEMORY // 2**40}T"
        )
    return size


def parse_mode(text: str) -> int:
    """Return the file mode of octal digits such as 0660.

    Raises:
        HostError: they are none, or set more than read and write for somebody.
    """
    if not re.fullmatch(r"0?[0-7]{3}", text) or int(text, 8) & ~0o666:
        raise HostError(f"socket-mode {text!r}: write octal digits such as 0660")
    return int(text, 8)


def parse_queue_pairs(text: str) -> int:
    """Return the number of queue pairs.

    Raises:
        HostError: it is none, or more than the metadata has room for.
    """
    if not _COUNT.fullmatch(text) or not 1 <= int(text) <= MAX_QUEUE_PAIRS:
        raise HostError(
            f"queue-pairs {text!r}: write a number from 1 to {MAX_QUEUE_PAIRS}"
        )
    return int(text)


def parse_domain(text: str) -> str:
    """Return `text` if it can be the name of a libvirt domain.

    Raises:
        HostError: it cannot, or virsh would take it for an option.
    """
    if not text or text.startswith("-") or "/" in text:
        raise HostError(
            f"slave-libvirt {text!r}: write a domain's name as `virsh list` has it"
        )
    return text


def group_id(name: str) -> int:
    """Return the ID of group `name`.

    Raises:
        HostError: there is no such group.
    """
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise HostError(
            f"socket-group {name!r}: there is no such group; make it "
            f"(groupadd {name}), or name one that exists"
        ) from None


def window_size(memory: int) -> int:
    """Return the size of a window for `memory` bytes: a BAR is a power of two."""
    return 1 << (memory + md.SIZE - 1).bit_length()


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a configuration, and the option that it is about."""

    option: str
    text: str


class ConfigError(HostError):
    """Values that do not go together.

    Args:
        config: the device's; more may be said of it.
        problems: at least one.
    """

    def __init__(self, config: "DeviceConfig", problems: Sequence[Problem]) -> None:
        super().__init__(f"{config.name}: {'; '.join(one.text for one in problems)}")
        self.config = config
        self.problems = problems


class Mode(StrEnum):
    """How the master's memory comes into the slave's windows."""

    ARENA = "arena"  # one file that we make: the master's RAM and window 0
    ATTACH = "attach"  # whatever files the master has, a window for each


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """One device; the paths follow from its name.

    Raises:
        ConfigError: the values do not go together, or a socket's path is longer than
            a socket's path can be.
    """

    name: str
    mode: Mode = Mode.ARENA
    memory: int = 0
    """Bytes of the master's memory; in attach mode it is the master's own affair."""
    queue_pairs: int = 1
    run_dir: Path = RUN_DIR
    memory_dir: Path = MEMORY_DIR
    group: int | None = None
    access: int = 0o600
    """File mode of the sockets and the memory."""
    socket_path: Path | None = None
    """The vhost-user socket, where it is not the one in `run_dir`."""
    slave_qmp: Path | None = None
    """The QMP socket of the slave VM, for plugging its devices in."""
    slave_libvirt: str | None = None
    """The libvirt domain of the slave VM, for the same."""

    def __post_init__(self) -> None:
        if problems := [*self._memory_problems(), *self._other_problems()]:
            raise ConfigError(self, problems)

    def _memory_problems(self) -> Iterator[Problem]:
        if self.mode is Mode.ARENA and not self.memory:
            yield Problem(
                "memory",
                "memory is missing: in arena mode give the master's RAM, such as 1G",
            )
        if self.mode is Mode.ATTACH and self.memory:
            yield Problem(
                "memory",
                "memory is for arena mode: in attach mode the master brings its own, "
                "so leave it out",
            )

    def _other_problems(self) -> Iterator[Problem]:
        if self.slave_qmp is not None and self.slave_libvirt is not None:
            yield Problem(
                "slave-qmp",
                "slave-qmp and slave-libvirt exclude each other: a domain's QMP "
                "socket is libvirt's, so give the domain alone",
            )
        longest = {**self.sockets, "window's": self.window(md.LAST_WINDOW)}
        for what, path in longest.items():
            if (size := len(os.fsencode(path))) > MAX_SUN_PATH:
                yield Problem(
                    "socket-path" if path == self.socket_path else "run-dir",
                    f"the {what} socket {path} has {size} bytes, more than "
                    f"{MAX_SUN_PATH}: use a shorter name or directory",
                )

    @property
    def sockets(self) -> dict[str, Path]:
        """All sockets that are there as long as the device is."""
        return {
            "vhost-user": self.vhost_user,
            "ivshmem": self.ivshmem,
            "control": self.control,
        }

    @property
    def files(self) -> dict[str, Path]:
        """All that the device has in the file system: no two devices share one."""
        sockets = {f"{what} socket": path for what, path in self.sockets.items()}
        arena = {"memory": self.arena} if self.mode is Mode.ARENA else {}
        return {**sockets, **arena}

    @property
    def plugged(self) -> bool:
        """Whether the slave is a VM that we plug devices into."""
        return self.slave_qmp is not None or self.slave_libvirt is not None

    @property
    def vhost_user(self) -> Path:
        """The socket that the master's QEMU connects to."""
        return self.socket_path or self.run_dir / f"{self.name}.vhost-user"

    @property
    def ivshmem(self) -> Path:
        """The socket that the slave's QEMU, or an agent as a process, connects to."""
        return self.run_dir / f"{self.name}.ivshmem"

    def window(self, number: int) -> Path:
        """The socket of window `number`; that of 0 is the slave's own."""
        return Path(f"{self.ivshmem}.{number}") if number else self.ivshmem

    @property
    def control(self) -> Path:
        """The socket that our own command line connects to."""
        return self.run_dir / f"{self.name}.control"

    @property
    def arena(self) -> Path:
        """The file that is the master's memory and the slave's window 0."""
        return self.memory_dir / self.name

    @property
    def rings(self) -> int:
        """Virtqueues: receive and transmit for each pair."""
        return 2 * self.queue_pairs

    @property
    def vectors(self) -> int:
        """Interrupt vectors that the slave's device must have."""
        return md.FIRST_KICK_VECTOR + self.rings

    @property
    def daemon_control(self) -> Path:
        """The socket for `add`, `remove` and `list`, of a daemon with many devices."""
        return daemon_control(self.run_dir)


def daemon_control(run_dir: Path) -> Path:
    """Return the control socket of a daemon with many devices."""
    return run_dir / "control"


def conflicts(
    devices: Iterable[DeviceConfig],
) -> Iterator[tuple[DeviceConfig, DeviceConfig | None, str]]:
    """Find files that two devices, or a device and the daemon, would both have.

    Each comes with the device that is later, the one before it (None is the daemon),
    and what to say.
    """
    owners: dict[str, tuple[DeviceConfig | None, str]] = {}
    for device in devices:
        daemons = os.path.normpath(device.daemon_control)
        owners.setdefault(daemons, (None, "the daemon's control socket"))
        for what, path in device.files.items():
            mine = (device, f"the {what} of {device.name}")
            other, whose = owners.setdefault(os.path.normpath(path), mine)
            if other is not device:
                text = f"its {what} {path} is {whose} too: choose another path or name"
                yield device, other, text
