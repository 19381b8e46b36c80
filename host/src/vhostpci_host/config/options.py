# SPDX-License-Identifier: Apache-2.0
"""A device's options, declared once: for the command line, `add`, and the file.

A value is text until `device` makes a `DeviceConfig` of it, wherever it came from:
so one check and one message serve `--queue-pairs 99`, a line of a configuration file,
and what a program writes to the control socket.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import HostError
from .device import MEMORY_DIR as DEFAULT_MEMORY_DIR
from .device import RUN_DIR as DEFAULT_RUN_DIR
from .device import (
    DeviceConfig,
    Mode,
    group_id,
    parse_domain,
    parse_mode,
    parse_queue_pairs,
    parse_size,
)

Texts = Mapping[str, str]
"""Values of some options, as text, by the options' names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: `--NAME` of a command, `NAME` in a file."""

    name: str
    field: str
    """What it sets in `DeviceConfig`."""
    parse: Callable[[str], object]
    """Makes the value of the text; raises HostError, with the option's name first."""
    metavar: str
    help: str
    is_path: bool = False
    is_number: bool = False
    """Whether a file may have it as a number, too."""
    machine: bool = False
    """Whether it depends on the machine that the daemon runs on what is right."""


def parse_device_mode(text: str) -> Mode:
    """Return the mode of that name.

    Raises:
        HostError: there is none.
    """
    try:
        return Mode(text)
    except ValueError:
        raise HostError(f"mode {text!r}: write {' or '.join(Mode)}") from None


def _path(name: str) -> Callable[[str], Path]:
    def parse(text: str) -> Path:
        if not text:
            raise HostError(f"{name} {text!r}: write a path")
        return Path(text)

    return parse


MODE = Option(
    name="mode",
    field="mode",
    parse=parse_device_mode,
    metavar="MODE",
    help="arena: we make the master's memory; attach: the master brings it, "
    "shared (default: arena)",
)
MEMORY = Option(
    name="memory",
    field="memory",
    parse=parse_size,
    metavar="SIZE",
    help="the master's memory, such as 1G (arena mode)",
    is_number=True,
)
QUEUE_PAIRS = Option(
    name="queue-pairs",
    field="queue_pairs",
    parse=parse_queue_pairs,
    metavar="N",
    help="queue pairs, 1 to 8, and up to 32 untested (default: 1)",
    is_number=True,
)
SLAVE_QMP = Option(
    name="slave-qmp",
    field="slave_qmp",
    parse=_path("slave-qmp"),
    metavar="SOCKET",
    help="the slave VM's QMP socket: plug its devices in while it runs",
    is_path=True,
)
SLAVE_LIBVIRT = Option(
    name="slave-libvirt",
    field="slave_libvirt",
    parse=parse_domain,
    metavar="DOMAIN",
    help="the same for a slave VM of libvirt's",
)
SOCKET_PATH = Option(
    name="socket-path",
    field="socket_path",
    parse=_path("socket-path"),
    metavar="PATH",
    help="vhost-user socket (default: RUN-DIR/NAME.vhost-user)",
    is_path=True,
)
MEMORY_DIR = Option(
    name="memory-dir",
    field="memory_dir",
    parse=_path("memory-dir"),
    metavar="DIR",
    help="directory of the arenas, on tmpfs or hugetlbfs "
    f"(default: {DEFAULT_MEMORY_DIR})",
    is_path=True,
)
RUN_DIR = Option(
    name="run-dir",
    field="run_dir",
    parse=_path("run-dir"),
    metavar="DIR",
    help=f"directory of the sockets (default: {DEFAULT_RUN_DIR})",
    is_path=True,
)
SOCKET_GROUP = Option(
    name="socket-group",
    field="group",
    parse=group_id,
    metavar="GROUP",
    help="group that may use sockets and memory (mode 0660)",
    machine=True,
)
SOCKET_MODE = Option(
    name="socket-mode",
    field="access",
    parse=parse_mode,
    metavar="MODE",
    help="mode of sockets and memory (default: 0600, or 0660 with a group)",
)

WHAT = (MODE, MEMORY, QUEUE_PAIRS, SOCKET_PATH)
"""What a device is: all that `qemu-args` needs, with the directories."""
SLAVE_VM = (SLAVE_QMP, SLAVE_LIBVIRT)
PLACES = (RUN_DIR, MEMORY_DIR)
ACCESS = (SOCKET_GROUP, SOCKET_MODE)
OPTIONS = {option.name: option for option in (*WHAT, *SLAVE_VM, *PLACES, *ACCESS)}
"""All there are, by name."""
SHARED = frozenset(option.name for option in (*PLACES, *ACCESS))
"""Those that a file may have at its top, for all its devices."""


def add_to(parser: argparse.ArgumentParser, *options: Option) -> None:
    """Have a command take these options."""
    for option in options:
        parser.add_argument(
            f"--{option.name}",
            type=_checked(option),
            metavar=option.metavar,
            help=option.help,
        )


def _checked(option: Option) -> Callable[[str], str]:
    """Have argparse report what is wrong with a text; keep the text."""

    def check(text: str) -> str:
        if not option.machine:
            try:
                value(option.name, text)
            except HostError as error:
                raise argparse.ArgumentTypeError(str(error)) from error
        return absolute(option, text, Path.cwd())

    return check


def absolute(option: Option, text: str, base: Path) -> str:
    """Return the text, and if it is a path, seen from `base`."""
    return str(base / text) if option.is_path and text else text


def texts(args: argparse.Namespace) -> dict[str, str]:
    """Return the options that the command line has."""
    found = {name: getattr(args, name.replace("-", "_"), None) for name in OPTIONS}
    return {name: text for name, text in found.items() if text is not None}


def value(name: str, text: str) -> object:
    """Return the value of an option.

    Raises:
        HostError: there is no such option, or it cannot have that value.
    """
    if name not in OPTIONS:
        raise HostError(f"{name}: no such option; there are: {', '.join(OPTIONS)}")
    if not text.isprintable():
        raise HostError(f"{name} {text!r}: leave out what cannot be printed")
    return OPTIONS[name].parse(text)


def device(name: str, given: Texts) -> DeviceConfig:
    """Return the configuration of the device `name`.

    Raises:
        HostError: an option is wrong, or they do not go together.
    """
    values = {key: value(key, text) for key, text in given.items()}
    return assemble(name, values)


def assemble(name: str, values: Mapping[str, object]) -> DeviceConfig:
    """Return a configuration of values that were parsed.

    Raises:
        ConfigError: they do not go together.
    """
    fields = {OPTIONS[key].field: value for key, value in values.items()}
    if fields.get("group") is not None:
        fields.setdefault("access", 0o660)
    return DeviceConfig(name=name, **fields)  # type: ignore[arg-type]
