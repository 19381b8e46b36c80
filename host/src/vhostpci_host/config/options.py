# SPDX-License-Identifier: Apache-2.0
"""A device's options, declared once: for the command line, `add`, and the file.

The value of an option is text until `device` makes a `DeviceConfig` of it.  So one
check and one message serve `--queue-pairs 99`, a line of a configuration file, and what
a program writes to the control socket.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vhostpci_shared.errors import told

from ..errors import HostError
from .confined import MIB, POOL
from .device import MEMORY_DIR as DEFAULT_MEMORY_DIR
from .device import (
    NO,
    YES,
    DeviceConfig,
    Mode,
    group_id,
    parse_carrier_grace,
    parse_confined,
    parse_domain,
    parse_mode,
    parse_queue_pairs,
    parse_size,
    parse_yes_no,
)
from .device import RUN_DIR as DEFAULT_RUN_DIR
from .features import PROFILES, parse_features

Texts = Mapping[str, str]
"""Values of some options, as text, by the options' names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: `--NAME` of a command, `NAME` in a file."""

    name: str
    field: str
    """The field of `DeviceConfig` that it sets."""
    parse: Callable[[str], object]
    """Returns the value of a text; its HostError begins with the option's name."""
    metavar: str
    help: str
    is_path: bool = False
    """Whether a relative value is joined to the caller's directory, or the file's."""
    is_number: bool = False
    """Whether a configuration file may also give it as a TOML number."""
    is_yes_no: bool = False
    """Whether it is `--NAME` alone on the command line, and true or false in a file."""
    daemon_checks: bool = False
    """Whether only the daemon can check its value."""
    alone: str | None = None
    """What `--NAME` without a value stands for; None: it needs one."""


def parse_device_mode(text: str) -> Mode:
    """Return the mode whose name is `text`.

    Raises:
        HostError: no mode has this name.
    """
    try:
        return Mode(text)
    except ValueError:
        raise HostError(
            f"mode {text!r}: write {' or '.join(Mode)}", code="H049"
        ) from None


def _path(name: str) -> Callable[[str], Path]:
    def parse(text: str) -> Path:
        # Path("") is the working directory.
        if not text:
            raise HostError(f"{name} {text!r}: write a path", code="H050")
        return Path(text)

    return parse


MODE = Option(
    name="mode",
    field="mode",
    # Not `Mode` itself: its ValueError does not name the option.
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
CONFINED = Option(
    name="confined",
    field="confined",
    parse=parse_confined,
    metavar="SIZE",
    help="experimental: the slave has no more of the master's memory than its card's "
    f"rings and a bounce pool of SIZE, {POOL // MIB}M if none is given",
    is_number=True,
    alone=f"{POOL // MIB}M",
)
PREALLOC = Option(
    name="prealloc",
    field="prealloc",
    parse=partial(parse_yes_no, "prealloc"),
    metavar="YES|NO",
    help="take all of the memory at the start, so that it cannot run out later "
    "(arena mode)",
    is_yes_no=True,
)
DISCARD_MEMORY = Option(
    name="discard-memory",
    field="discard_memory",
    parse=partial(parse_yes_no, "discard-memory"),
    metavar="YES|NO",
    help="remove the memory at the end, even if a master has had it (arena mode)",
    is_yes_no=True,
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
# There is no option for libvirt's URI: LIBVIRT_DEFAULT_URI has it, as for virsh.
SLAVE_LIBVIRT = Option(
    name="slave-libvirt",
    field="slave_libvirt",
    parse=parse_domain,
    metavar="DOMAIN",
    help="the slave VM's libvirt domain: plug its devices in while it runs",
)
# The vhost-user specification gives this option its name ("Backend program
# conventions"): a management program knows it without knowing us.
SOCKET_PATH = Option(
    name="socket-path",
    field="socket_path",
    parse=_path("socket-path"),
    metavar="PATH",
    help="vhost-user socket (default: RUN-DIR/NAME.vhost-user)",
    is_path=True,
)
CONNECT = Option(
    name="connect",
    field="connect",
    parse=_path("connect"),
    metavar="PATH",
    help="connect to the vhost-user socket of a front-end that listens (server=on), "
    "again and again, instead of listening",
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
    # The daemon may run where other groups exist, in a container for instance.
    daemon_checks=True,
)
SOCKET_MODE = Option(
    name="socket-mode",
    field="access",
    parse=parse_mode,
    metavar="MODE",
    help="mode of sockets and memory (default: 0600, or 0660 with a group)",
)

CARRIER_GRACE = Option(
    name="carrier-grace",
    field="carrier_grace",
    parse=parse_carrier_grace,
    metavar="SECONDS",
    help="without an agent for so long, the master's card loses its carrier, if "
    "its front-end would connect again; off: it keeps the carrier (default: 3)",
    is_number=True,
)
FEATURES = Option(
    name="features",
    field="features",
    parse=parse_features,
    metavar="LIST",
    help="the most that the master is offered, for a data plane that comes later: "
    f"{', '.join(PROFILES)}, or names of features, joined by commas (default: what the "
    "agent serves, or the last one did)",
)

# `--help` lists the options in the order of these tuples.
WHAT = (MODE, MEMORY, CONFINED, QUEUE_PAIRS, FEATURES, SOCKET_PATH, CONNECT)
"""The options of the device itself; with PLACES, all that a master's QEMU needs."""
SLAVE_VM = (SLAVE_QMP, SLAVE_LIBVIRT)
PLACES = (RUN_DIR, MEMORY_DIR)
ACCESS = (SOCKET_GROUP, SOCKET_MODE)
LIFE = (PREALLOC, DISCARD_MEMORY)
"""When the arena takes its memory, and when it is removed."""
OPTIONS = {
    option.name: option
    for option in (*WHAT, *LIFE, CARRIER_GRACE, *SLAVE_VM, *PLACES, *ACCESS)
}
"""All options, by name."""
SHARED = frozenset(
    option.name for option in (CARRIER_GRACE, FEATURES, *PLACES, *ACCESS)
)
"""The options that may stand at a file's top, for all its devices."""


def add_to(parser: argparse.ArgumentParser, *options: Option) -> None:
    """Add these options to a command."""
    for option in options:
        if option.is_yes_no:
            parser.add_argument(
                f"--{option.name}", action="store_const", const=YES, help=option.help
            )
            continue
        parser.add_argument(
            f"--{option.name}",
            # argparse reports what a type refuses, with the option's name and status 2.
            type=_checked(option),
            metavar=option.metavar,
            help=option.help,
            nargs=None if option.alone is None else "?",
            const=option.alone,
        )


def _checked(option: Option) -> Callable[[str], str]:
    """Return a type for argparse that checks a text, and returns it as text."""

    def check(text: str) -> str:
        if not option.daemon_checks:
            try:
                value(option.name, text)
            except HostError as error:
                # argparse prints the text of no other exception.
                raise argparse.ArgumentTypeError(told(error)) from error
        # The text goes to the daemon, whose working directory is another.
        return absolute(option, text, Path.cwd())

    return check


def absolute(option: Option, text: str, base: Path) -> str:
    """Return the text; if it is a relative path, return it joined to `base`."""
    # An empty text stays empty, so that `_path` refuses it.
    return str(base / text) if option.is_path and text else text


def yes_no(value: bool) -> str:
    """Return the text of a yes or no."""
    return YES if value else NO


def texts(args: argparse.Namespace) -> dict[str, str]:
    """Return the options that the user gave on the command line."""
    # A command has only some of the options.  One that was not given stays out, so that
    # the file's top, or the default of `DeviceConfig`, can give its value.
    found = {name: getattr(args, name.replace("-", "_"), None) for name in OPTIONS}
    return {name: text for name, text in found.items() if text is not None}


def value(name: str, text: str) -> object:
    """Return the value of an option.

    Raises:
        HostError: there is no such option, or its value is wrong.
    """
    if name not in OPTIONS:
        raise HostError(
            f"{name}: no such option; there are: {', '.join(OPTIONS)}", code="H051"
        )
    # This refuses NUL and lone surrogates, for which the calls of the operating system
    # raise ValueError, and line ends, which would break log lines apart.
    if not text.isprintable():
        raise HostError(
            f"{name} {text!r}: leave out what cannot be printed", code="H052"
        )
    return OPTIONS[name].parse(text)


def device(name: str, given: Texts) -> DeviceConfig:
    """Return the configuration of the device `name`.

    Raises:
        HostError: an option is wrong, or the options contradict each other.
    """
    # The values first, in the user's order: a wrong value is a clearer error than the
    # contradiction that it causes.
    values = {key: value(key, text) for key, text in given.items()}
    return assemble(name, values)


def assemble(name: str, values: Mapping[str, object]) -> DeviceConfig:
    """Return the configuration of device `name` with these parsed values.

    Raises:
        ConfigError: the values contradict each other.
    """
    fields = {OPTIONS[key].field: value for key, value in values.items()}
    # Mode 0600 would give the group that the user has named nothing.
    if fields.get("group") is not None:
        fields.setdefault("access", 0o660)
    return DeviceConfig(name=name, **fields)  # type: ignore[arg-type]
