# SPDX-License-Identifier: Apache-2.0
"""The configuration of one device, checked before any file or socket is made."""

import grp
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path

from vhostpci_shared import metadata_numbers as md
from vhostpci_shared.errors import Problem
from vhostpci_shared.virtio import Feature

from ..errors import HostError
from . import confined as region

RUN_DIR = Path("/run/vhostpci")
MEMORY_DIR = Path("/dev/shm/vhostpci")
YES, NO = "yes", "no"
OFF = "off"
MAX_QUEUE_PAIRS = md.MAX_RINGS // 2
LONGEST_GRACE = 3600
"""Seconds: who wants more wants the carrier to stay."""
MIB = region.MIB
MAX_MEMORY = 2**44
MAX_SUN_PATH = 107
"""Bytes that `struct sockaddr_un` has for a path (unix(7)), less the NUL."""

# A device's name becomes part of file names, QEMU IDs and QEMU options, so it can have
# neither "/" nor "," nor a space.  It begins with no "-", which the command line would
# take for an option, and no ".", which would hide its files.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# int() refuses more than 4300 digits with a plain ValueError: take no more than any
# size that MAX_MEMORY allows could need.
_SIZE = re.compile(r"(\d{1,20})([KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)
_COUNT = re.compile(r"\d{1,20}", re.ASCII)
_WINDOW_SOCKET = re.compile(r".+\.ivshmem\.\d+", re.ASCII)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def check_name(text: str) -> str:
    """Return `text` if it can name a device, its files and its QEMU objects.

    Raises:
        HostError: the text cannot be such a name.
    """
    if not _NAME.fullmatch(text):
        raise HostError(
            f"name {text!r}: use 1 to 64 letters, digits, '.', '_' and '-', "
            "and start with a letter or digit",
            code="H028",
        )
    return text


def parse_size(text: str, option: str = "memory") -> int:
    """Return the number of bytes that a size such as 512M or 4G stands for.

    Args:
        text: the size.
        option: the name of the option whose value it is.

    Raises:
        HostError: the text is no size, or a VM's memory cannot have that size.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise HostError(
            f"{option} {text!r}: write a size such as 512M or 4G", code="H029"
        )
    # "MiB", "MB" and "M" all mean 2**20 bytes, as the "M" of QEMU's options does.
    size = int(match[1]) * _UNITS[match[2].upper()]
    # Whole megabytes: the printed QEMU options and libvirt XML give sizes in them.
    if not 0 < size <= MAX_MEMORY or size % MIB:
        raise HostError(
            f"{option} {text!r} is {size} bytes: it must be a multiple of 1M, "
            f"and at most {MAX_MEMORY // 2**40}T",
            code="H030",
        )
    return size


def parse_confined(text: str) -> int:
    """Return the bytes of a confined device's bounce pool.

    Raises:
        HostError: the text is no size, or no bounce pool can have that size.
    """
    size = parse_size(text, "confined")
    least, most = region.LEAST_POOL, region.MOST_POOL
    if not least <= size <= most or size.bit_count() != 1:
        raise HostError(
            f"confined {text!r}: the bounce pool's size is a power of two, from "
            f"{least // MIB}M to {most // MIB}M",
            code="H140",
        )
    return size


def parse_yes_no(name: str, text: str) -> bool:
    """Return whether `text`, the value of option `name`, is yes.

    Raises:
        HostError: it is neither yes nor no.
    """
    if text not in (YES, NO):
        raise HostError(f"{name} {text!r}: write {YES} or {NO}", code="H031")
    return text == YES


def parse_mode(text: str) -> int:
    """Return the file mode of octal digits such as 0660.

    Raises:
        HostError: the text is no file mode, or one that sets other bits than the
            three for reading and the three for writing.
    """
    # Only those bits mean something for a socket and a memory file.
    if not re.fullmatch(r"0?[0-7]{3}", text) or int(text, 8) & ~0o666:
        raise HostError(
            f"socket-mode {text!r}: write octal digits such as 0660", code="H032"
        )
    return int(text, 8)


def parse_queue_pairs(text: str) -> int:
    """Return the number of queue pairs.

    Raises:
        HostError: the text is no number, or the metadata has no room for as many.
    """
    # The pattern comes first: int() would also take "+1", "1_0" and digits that are not
    # ASCII.
    if not _COUNT.fullmatch(text) or not 1 <= int(text) <= MAX_QUEUE_PAIRS:
        raise HostError(
            f"queue-pairs {text!r}: write a number from 1 to {MAX_QUEUE_PAIRS}",
            code="H033",
        )
    return int(text)


def parse_carrier_grace(text: str) -> int | None:
    """Return the seconds, or None for a carrier that stays.

    Raises:
        HostError: the text is neither `off` nor such a number.
    """
    if text == OFF:
        return None
    # An agent that hangs is noticed within a second, and no sooner.
    if not _COUNT.fullmatch(text) or not 1 <= int(text) <= LONGEST_GRACE:
        raise HostError(
            f"carrier-grace {text!r}: write seconds from 1 to {LONGEST_GRACE}, "
            f"or {OFF}",
            code="H034",
        )
    return int(text)


def parse_domain(text: str) -> str:
    """Return `text` if it can be the name of a libvirt domain.

    Raises:
        HostError: the text cannot be a domain's name, or looks like an option.
    """
    # Without a "/" a domain's name cannot be mistaken for a QMP socket, which is an
    # absolute path: `status` shows either in the same place.
    if not text or text.startswith("-") or "/" in text:
        raise HostError(
            f"slave-libvirt {text!r}: write a domain's name as `virsh list` has it",
            code="H035",
        )
    return text


# System calls: connect, poll, recvmsg, sendto, socket(AF_UNIX).
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
            f"(groupadd {name}), or name one that exists",
            code="H036",
        ) from None


def window_size(memory: int) -> int:
    """Return the size of the window for an arena with `memory` bytes of RAM."""
    # The metadata region comes behind the RAM.  A power of two: QEMU aborts on a BAR of
    # another size (an assertion in pci_register_bar).
    return 1 << (memory + md.SIZE - 1).bit_length()


class ConfigError(HostError):
    """The options of a device contradict each other, or one is missing.

    Args:
        config: the device's configuration.  It exists although it cannot be served, so
            that a caller can look for further mistakes in it.
        problems: at least one; the first one's code is the error's.
    """

    def __init__(self, config: "DeviceConfig", problems: Sequence[Problem]) -> None:
        super().__init__(
            f"{config.name}: {'; '.join(one.text for one in problems)}",
            code=problems[0].code,
        )
        self.config = config
        self.problems = problems


def describe(config: "DeviceConfig") -> tuple[str, ...]:
    """Return all that differs from the defaults: two alike have the same texts."""
    # What is as by default is left out, so that a later version with more options has
    # the same texts for the same configuration.
    values = ((one, getattr(config, one.name)) for one in fields(DeviceConfig))
    return tuple(f"{one.name}={value}" for one, value in values if value != one.default)


class Mode(StrEnum):
    """How the master's memory comes into the slave's windows."""

    ARENA = "arena"  # the daemon makes one file: the master's RAM and window 0
    ATTACH = "attach"  # the master has its own files: each becomes a window


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """The configuration of one device; most of its paths follow from its name.

    Raises:
        ConfigError: the values contradict each other, or a socket's path is longer
            than MAX_SUN_PATH.
    """

    name: str
    mode: Mode = Mode.ARENA
    memory: int = 0
    """Bytes of the master's RAM in arena mode; 0 in attach mode."""
    queue_pairs: int = 1
    run_dir: Path = RUN_DIR
    memory_dir: Path = MEMORY_DIR
    group: int | None = None
    access: int = 0o600
    """File mode of the sockets and the memory."""
    prealloc: bool = False
    """Whether all of the arena's memory is taken at the start."""
    discard_memory: bool = False
    """Whether the arena is removed at the end, even if a master has had it."""
    socket_path: Path | None = None
    """The vhost-user socket; None puts it into `run_dir`."""
    connect: Path | None = None
    """The vhost-user socket on which the front-end listens; None if we listen."""
    slave_qmp: Path | None = None
    """The QMP socket of the slave VM into which the windows are plugged."""
    slave_libvirt: str | None = None
    """The libvirt domain into which the windows are plugged."""
    carrier_grace: int | None = 3
    """Seconds without an agent after which the master's card loses its carrier."""
    features: Feature | None = None
    """The most that a front-end is offered; None: what the agent's data plane serves.
    """
    confined: int | None = None
    """Bytes of the bounce pool; None for a slave that has all of the master's memory.
    """

    def __post_init__(self) -> None:
        # All problems at once: the user of a file should not have to correct one
        # mistake to learn of the next.
        problems = [
            *self._memory_problems(),
            *self._confined_problems(),
            *self._other_problems(),
            *self._path_problems(),
        ]
        if problems:
            raise ConfigError(self, problems)

    def _memory_problems(self) -> Iterator[Problem]:
        if self.mode is Mode.ARENA and not self.memory:
            yield Problem(
                "memory",
                "memory is missing: in arena mode give the master's RAM, such as 1G",
                code="H037",
            )
        # Refuse a size rather than ignore it: its author expects an arena of that size.
        if self.mode is Mode.ATTACH and self.memory:
            yield Problem(
                "memory",
                "memory is for arena mode: in attach mode the master brings its own, "
                "so leave it out",
                code="H038",
            )
        if self.mode is Mode.ATTACH:
            given = {"prealloc": self.prealloc, "discard-memory": self.discard_memory}
            for option in (name for name, is_set in given.items() if is_set):
                yield Problem(
                    option,
                    f"{option} is for arena mode: in attach mode the master's memory "
                    "is its own, so leave it out",
                    code="H039",
                )

    def _confined_problems(self) -> Iterator[Problem]:
        if self.confined is None:
            return
        if self.memory and self.memory <= self.shared:
            yield Problem(
                "memory",
                f"memory {self.memory // MIB}M is all of a confined master's memory, "
                f"and {self.shared // MIB}M of it are shared: give it more",
                code="H141",
            )
        if self.queue_pairs > 1:
            yield Problem(
                "queue-pairs",
                f"queue-pairs {self.queue_pairs} of a confined device: several need "
                "the card's control queue, by which a slave could have the master's "
                "QEMU write anywhere in the master's memory: leave out queue-pairs",
                code="H142",
            )

    def _other_problems(self) -> Iterator[Problem]:
        # Refuse both rather than use one of them silently.
        if self.connect is not None and self.socket_path is not None:
            yield Problem(
                "connect",
                "connect and socket-path exclude each other: either the front-end "
                "listens on the vhost-user socket, or we do",
                code="H040",
            )
        if self.slave_qmp is not None and self.slave_libvirt is not None:
            yield Problem(
                "slave-qmp",
                "slave-qmp and slave-libvirt exclude each other: a domain's QMP "
                "socket is libvirt's, so give the domain alone",
                code="H041",
            )
        most = self.features
        if self.queue_pairs > 1 and most is not None and Feature.NET_F_MQ not in most:
            yield Problem(
                "features",
                f"features without NET_F_MQ: a master could not use {self.queue_pairs} "
                "queue pairs: add NET_F_MQ, or leave out queue-pairs",
                code="H042",
            )
        # A window's socket is made only when the master has described its memory: check
        # now that the longest path of any window fits.
        longest = {**self.sockets, "window's": self.window(md.LAST_WINDOW)}
        for what, path in longest.items():
            # The kernel counts bytes, not characters.
            if (size := len(os.fsencode(path))) > MAX_SUN_PATH:
                given = path in (self.socket_path, self.connect)
                yield Problem(
                    self._vhost_user_option if given else "run-dir",
                    f"the {what} socket {path} has {size} bytes, more than "
                    f"{MAX_SUN_PATH}: use a shorter name or directory",
                    code="H043",
                )

    def _path_problems(self) -> Iterator[Problem]:
        """Find the paths that this device would use for two things."""
        # Only `socket_path`, `connect` and `slave_qmp` can be such a path: the names of
        # all other sockets end differently, and no "/" in a name makes them equal.
        uses = dict(self.files)
        if self.slave_qmp is not None:
            uses["slave VM's QMP socket"] = self.slave_qmp
        first_uses: dict[str, str] = {}
        for what, path in uses.items():
            first = first_uses.setdefault(os.path.normpath(path), what)
            if first != what:
                plugs = path == self.slave_qmp
                option = "slave-qmp" if plugs else self._vhost_user_option
                yield Problem(
                    option,
                    f"{path} is both its {first} and its {what}: "
                    f"choose another {option}",
                    code="H044",
                )
        # The windows' numbers are random, so no window may have its socket there yet.
        directory, name = os.path.split(os.path.normpath(self.vhost_user))
        in_run_dir = directory == os.path.normpath(self.run_dir)
        if in_run_dir and _WINDOW_SOCKET.fullmatch(name):
            option = self._vhost_user_option
            yield Problem(
                option,
                f"{option} {self.vhost_user}: in {self.run_dir} that is the name of "
                "a window's socket: choose another",
                code="H045",
            )

    @property
    def _vhost_user_option(self) -> str:
        """The option that has the path of the vhost-user socket."""
        return "socket-path" if self.connect is None else "connect"

    @property
    def sockets(self) -> dict[str, Path]:
        """The sockets whose paths are known before a master comes."""
        return {
            "vhost-user": self.vhost_user,
            "ivshmem": self.ivshmem,
            "control": self.control,
        }

    @property
    def files(self) -> dict[str, Path]:
        """All files and sockets that belong to this device alone."""
        sockets = {f"{what} socket": path for what, path in self.sockets.items()}
        arena = {"memory": self.arena} if self.mode is Mode.ARENA else {}
        return {**sockets, **arena}

    @property
    def plugged(self) -> bool:
        """Whether the daemon plugs the windows into a running slave VM."""
        return self.slave_qmp is not None or self.slave_libvirt is not None

    @property
    def vhost_user(self) -> Path:
        """The socket that the master's QEMU connects to, or listens on."""
        given = self.connect or self.socket_path
        return given or self.run_dir / f"{self.name}.vhost-user"

    @property
    def ivshmem(self) -> Path:
        """The socket that the slave's QEMU, or an agent as a process, connects to."""
        return self.run_dir / f"{self.name}.ivshmem"

    def window(self, number: int) -> Path:
        """The socket of window `number`; that of window 0 is `ivshmem`."""
        return Path(f"{self.ivshmem}.{number}") if number else self.ivshmem

    @property
    def control(self) -> Path:
        """The socket on which the daemon answers the commands about this device."""
        return self.run_dir / f"{self.name}.control"

    @property
    def arena(self) -> Path:
        """The file that is the master's memory and the slave's window 0."""
        return self.memory_dir / self.name

    @property
    def shared(self) -> int:
        """Bytes of the master's memory that the slave has; 0 if we cannot know."""
        if self.confined is None:
            return self.memory
        attached = self.mode is Mode.ATTACH
        return region.shared_region(self.confined, attached=attached)

    @property
    def rings(self) -> int:
        """How many virtqueues there are: two for each queue pair."""
        return 2 * self.queue_pairs

    @property
    def vectors(self) -> int:
        """How many MSI-X vectors the ivshmem function of window 0 must have."""
        return md.FIRST_KICK_VECTOR + self.rings

    @property
    def daemon_control(self) -> Path:
        """The socket for `add`, `remove` and `list`, if the daemon serves a file."""
        return daemon_control(self.run_dir)


def daemon_control(run_dir: Path) -> Path:
    """Return the control socket of a daemon that serves many devices."""
    # No device's name leads to this path: its sockets here are NAME.control and so on.
    return run_dir / "control"


TWO_USES = "H046"
"""One device, or two, or a device and the daemon would use one path for two things."""


def conflicts(
    devices: Iterable[DeviceConfig],
) -> Iterator[tuple[DeviceConfig, DeviceConfig | None, str]]:
    """Find the files that two devices, or a device and the daemon, would both use.

    Yields:
        For each such file: the device that comes later in `devices`, the one before it
        (None is the daemon), and the text of the error.
    """
    owners: dict[str, tuple[DeviceConfig | None, str]] = {}
    for device in devices:
        # normpath, not realpath: the check depends on the configuration alone, and not
        # on what lies in the file system at this moment.
        daemons = os.path.normpath(device.daemon_control)
        owners.setdefault(daemons, (None, "the daemon's control socket"))
        for what, path in device.files.items():
            mine = (device, f"the {what} of {device.name}")
            other, whose = owners.setdefault(os.path.normpath(path), mine)
            if other is not device:
                text = f"its {what} {path} is {whose} too: choose another path or name"
                yield device, other, text
