# SPDX-License-Identifier: Apache-2.0
"""The configuration file: TOML, with the command line's names.

    run-dir = "/run/vhostpci"         # for the daemon, and defaults for its devices
    socket-group = "libvirt-qemu"

    [device.web]
    memory = "1G"

    [device.db]
    mode = "attach"
    queue-pairs = 4

A file that is not TOML has one error, with the line and column where `tomllib` gave
up.  In a file that is TOML, `load` reports all mistakes at once, each under the name
of its table and key.
"""

import difflib
import json
import re
import reprlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import FileError, HostError, explain
from . import options
from .device import RUN_DIR, ConfigError, DeviceConfig, check_name, conflicts

DEVICE = "device"

# TOML 1.0: a bare key has only ASCII letters, ASCII digits, "_" and "-".
_BARE_KEY = re.compile(r"[\w-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The content of a configuration file that has no mistakes."""

    path: Path
    run_dir: Path
    shared: dict[str, str]
    """The options at its top: defaults for a device that is added later."""
    devices: tuple[DeviceConfig, ...]
    text: bytes = field(repr=False, compare=False)
    """What it was read from."""


def load(path: Path) -> ConfigFile:
    """Read a configuration file.

    Raises:
        FileError: the file has mistakes; the text has them all.
        HostError: the file cannot be read.
    """
    try:
        # Bytes, so that `_parse` can name the line of a byte that is not UTF-8.
        data = path.read_bytes()
    except OSError as error:
        raise explain("read", path, error) from error
    return read(path, data)


def read(path: Path, data: bytes) -> ConfigFile:
    """Return what a configuration file says, given its bytes.

    Raises:
        FileError: it has mistakes; the text has them all.
    """
    try:
        document = _parse(data)
    except HostError as error:
        raise FileError(path, [str(error)]) from error
    # absolute() follows no symbolic link: relative paths count from the directory that
    # the user has named.
    check = _Check(path.absolute().parent, document)
    if mistakes := check.mistakes():
        raise FileError(path, mistakes)
    return check.result(path.absolute(), data)


def _parse(data: bytes) -> dict[str, Any]:
    try:
        # tomllib takes no other encoding than UTF-8, and TOML has no other.
        return tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise HostError(
            f"byte {data[error.start]:#x} in line {line} is not UTF-8: "
            "save the file as UTF-8"
        ) from error
    except RecursionError:
        # tomllib calls itself for each bracket.
        raise HostError("this is not TOML: too many nested brackets") from None
    # TOMLDecodeError, and int()'s plain ValueError for more than 4300 digits.
    except ValueError as error:
        raise HostError(f"this is not TOML: {error}") from error


@dataclass(slots=True)
class _Table:
    """A device's table, or the options at the file's top, which have no heading."""

    heading: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)
    """The options that stand in the table with a wrong value."""
    mistakes: list[str] = field(default_factory=list)

    def add_mistake(self, text: object) -> None:
        self.mistakes.append(f"{self.heading}: {text}" if self.heading else f"{text}")


class _Check:
    """Checks a parsed file, and keeps its mistakes in the order of its tables.

    Args:
        base: the file's directory, from which its relative paths count.  The daemon's
            working directory may be any, for instance / under systemd.
        document: the file, as `tomllib` returns it.
    """

    def __init__(self, base: Path, document: Mapping[str, Any]) -> None:
        self._base = base
        self._top = _Table()
        self._tables: dict[str, _Table] = {}
        self._devices: list[DeviceConfig] = []
        for key, value in document.items():
            if key != DEVICE:
                self._check_top(key, value)
        # After the whole top: its options are defaults for every device, even if
        # `device.NAME.OPTION = ...` stands before them.
        self._check_devices(document.get(DEVICE, {}))
        # After all devices: a conflict may be with one that comes later in the file.
        for device, _, text in conflicts(self._devices):
            self._tables[device.name].add_mistake(text)

    def mistakes(self) -> list[str]:
        """Return all mistakes: those at the top, then those of each device."""
        tables = (self._top, *self._tables.values())
        return [text for table in tables for text in table.mistakes]

    def result(self, path: Path, text: bytes) -> ConfigFile:
        """Return the content; the caller has checked that there are no mistakes."""
        run_dir = self._top.values.get("run-dir", RUN_DIR)
        assert isinstance(run_dir, Path), "a path option"
        return ConfigFile(path, run_dir, self._top.texts, tuple(self._devices), text)

    def _check_top(self, key: str, value: object) -> None:
        if _is_array_of_tables(value):
            name = _quoted(key)
            self._top.add_mistake(f"[[{name}]]: there are only tables [device.NAME]")
        # Most likely [NAME] of a device, without the "device.".  A table that has an
        # option's name is a wrong value of that option instead.
        elif isinstance(value, dict) and key not in options.OPTIONS:
            name = _quoted(key)
            self._top.add_mistake(f"[{name}]: there are only tables [device.NAME]")
        elif key in options.OPTIONS and key not in options.SHARED:
            self._top.add_mistake(f"{key} is for one device: move it to [device.NAME]")
        else:
            self._take(self._top, key, value, sorted(options.SHARED))

    def _check_devices(self, devices: object) -> None:
        if not isinstance(devices, dict):
            self._top.add_mistake(
                f"{DEVICE} {_shown(devices)}: write a table [device.NAME]"
            )
            return
        for name, table in devices.items():
            self._check_device(name, table)

    def _check_device(self, name: str, given: object) -> None:
        table = self._tables[name] = _Table(f"{DEVICE}.{_quoted(name)}")
        if _is_array_of_tables(given):
            table.add_mistake(f"write [{table.heading}], with single brackets")
            return
        if not isinstance(given, dict):
            table.add_mistake(f"{_shown(given)}: write a table [{table.heading}]")
            return
        for key, value in given.items():
            self._check_option(table, key, value)
        try:
            check_name(name)
        except HostError as error:
            # The name's mistake comes before those of the options.  Assemble no
            # configuration: its paths would have that name in them.
            table.mistakes.insert(0, f"{table.heading}: {error}")
        else:
            self._assemble(name, table)

    def _check_option(self, table: _Table, key: str, value: object) -> None:
        if key == options.RUN_DIR.name:
            table.add_mistake(
                "run-dir is for the whole daemon: move it to the file's top, "
                "before the first table",
            )
        elif isinstance(value, dict):
            table.add_mistake(
                f"{_quoted(key)}: a device's table has no tables in it: remove it"
            )
            # `memory.x = 1` gives memory a wrong value; `_assemble` must not say that
            # memory is missing.
            table.wrong.add(key)
        else:
            known = options.OPTIONS.keys() - {options.RUN_DIR.name}
            self._take(table, key, value, sorted(known))

    def _take(self, table: _Table, key: str, value: object, known: list[str]) -> None:
        """Check one option without regard to the others, and keep its value."""
        try:
            text = self._text(key, value, known)
            table.values[key] = options.value(key, text)
        except HostError as error:
            table.wrong.add(key)
            table.add_mistake(error)
        else:
            table.texts[key] = text

    def _text(self, key: str, value: object, known: list[str]) -> str:
        """Return a value as the text that a user would write on the command line."""
        option = options.OPTIONS.get(key)
        if option is None:
            near = difflib.get_close_matches(key, known, n=1)
            known_names = f"there are {', '.join(known)}"
            hint = f"do you mean {near[0]}?" if near else known_names
            raise HostError(f"{_quoted(key)}: there is no such option; {hint}")
        if isinstance(value, str):
            return options.absolute(option, value, self._base)
        # A number where the command line has one.  A `socket-mode = 660` is refused:
        # TOML would take it for decimal, and octal is what its author means.
        if option.is_number and _is_number(value):
            return str(value)
        if option.is_yes_no and isinstance(value, bool):
            return options.yes_no(value)
        form = "a text in quotes"
        if option.is_number:
            form += " or a number"
        raise HostError(
            f"{key} {_shown(value)}: write "
            f"{'true or false' if option.is_yes_no else form}"
        )

    def _assemble(self, name: str, table: _Table) -> None:
        """Make the device's configuration; report values that contradict each other."""
        wrong = table.wrong | self._top.wrong
        if "mode" in wrong:
            wrong.add("memory")  # only some modes need it, and the mode is unknown
        try:
            # A device's own options replace those at the top.
            device = options.assemble(name, {**self._top.values, **table.values})
        except ConfigError as error:
            device = error.config
            for problem in error.problems:
                # An option that is there with a wrong value has its mistake
                # already; do not call it missing too.
                if problem.option not in wrong:
                    table.add_mistake(problem.text)
        # Also a device with problems: `conflicts` can then report its files too.
        self._devices.append(device)


def _is_array_of_tables(value: object) -> bool:
    """Whether a value was written with double brackets, or looks as if it were."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) for one in value)
    )


def _is_number(value: object) -> bool:
    """Whether a value is an integer that TOML allows: 64 bits, and no boolean."""
    # In Python, bool is a kind of int.
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    # tomllib takes a hexadecimal number of any length, but str() raises ValueError for
    # one that has more than 4300 decimal digits.
    return -(2**63) <= value < 2**63


def _shown(value: object) -> str:
    """Return a value for a message, shortened if it is long or deep."""
    try:
        # Not repr(): it raises RecursionError for the table that a dotted key of
        # thousands of parts makes.
        return reprlib.repr(value)
    except ValueError:  # a hexadecimal number with more than 4300 decimal digits
        return "(a number of thousands of digits)"


def _quoted(key: str) -> str:
    """Return a key as TOML writes it: in quotes if it has more than bare characters."""
    return key if _BARE_KEY.fullmatch(key) else json.dumps(key)
