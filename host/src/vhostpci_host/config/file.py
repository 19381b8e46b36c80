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
up.  In a file that is TOML, `load` reports all mistakes at once, each with its line and
under the name of its table and key.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vhostpci_shared.device_tables import DeviceTables, Form, Place, Rule, Table
from vhostpci_shared.errors import BadValue
from vhostpci_shared.toml_file import BrokenFile, Document, Mistake, read_bytes

from ..errors import FileError, HostError, explain
from . import options
from .device import RUN_DIR, TWO_USES, ConfigError, DeviceConfig, check_name, conflicts

Values = dict[str, object]


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
        # Bytes, so that a byte that is not UTF-8 has its line in the error.
        data = read_bytes(path)
    except BrokenFile as error:
        raise FileError(path, [error.mistake]) from error
    except OSError as error:
        raise explain("read", path, error) from error
    return read(path, data)


def read(path: Path, data: bytes) -> ConfigFile:
    """Return what a configuration file says, given its bytes.

    Raises:
        FileError: it has mistakes; the text has them all.
    """
    try:
        document = Document(data)
    except BrokenFile as error:
        raise FileError(path, [error.mistake]) from error
    # absolute() follows no symbolic link: relative paths count from the directory that
    # the user has named.
    check = _Check(path.absolute().parent, document)
    if mistakes := check.mistakes():
        raise FileError(path, mistakes)
    return check.result(path.absolute(), data)


def _rule(option: options.Option) -> Rule:
    """Return where a file may have an option, and in which form."""
    place = Place.BOTH if option.name in options.SHARED else Place.DEVICE
    if option is options.RUN_DIR:
        place = Place.TOP
    if option.is_number:
        return Rule(place, Form.NUMBER)
    return Rule(place, Form.YES_NO if option.is_yes_no else Form.TEXT)


class _Check:
    """Checks a parsed file, and keeps its mistakes in the order of its tables.

    Args:
        base: the file's directory, from which its relative paths count.  The daemon's
            working directory may be any, for instance / under systemd.
        document: the file.
    """

    def __init__(self, base: Path, document: Document) -> None:
        self._base = base
        self._values: dict[str, Values] = {}
        """The values of each table, by its heading."""
        self._devices: list[DeviceConfig] = []
        rules = {name: _rule(option) for name, option in options.OPTIONS.items()}
        self._tables = DeviceTables(document, rules, "daemon", self._take)
        for name, table in self._tables.devices.items():
            self._check_device(name, table)
        # After all devices: a conflict may be with one that comes later in the file.
        for device, _, text in conflicts(self._devices):
            table = self._tables.devices[device.name]
            self._tables.add_mistake(table, text, code=TWO_USES)

    def mistakes(self) -> list[Mistake]:
        """Return all mistakes: those at the top, then those of each device."""
        return self._tables.mistakes()

    def result(self, path: Path, text: bytes) -> ConfigFile:
        """Return the content; the caller has checked that there are no mistakes."""
        run_dir = self._values.get("", {}).get("run-dir", RUN_DIR)
        assert isinstance(run_dir, Path), "a path option"
        shared = {
            key: self._absolute(key, texts[0])
            for key, texts in self._tables.top.texts.items()
        }
        return ConfigFile(path, run_dir, shared, tuple(self._devices), text)

    def _absolute(self, key: str, text: str) -> str:
        return options.absolute(options.OPTIONS[key], text, self._base)

    def _take(self, table: Table, key: str, texts: Sequence[str]) -> None:
        """Keep the value of an option."""
        try:
            value = options.value(key, self._absolute(key, texts[0]))
        except HostError as error:
            raise BadValue(str(error), code=error.code) from error
        self._values.setdefault(table.heading, {})[key] = value

    def _check_device(self, name: str, table: Table) -> None:
        try:
            check_name(name)
        except HostError as error:
            # The name's mistake comes before those of the options.  Assemble no
            # configuration: its paths would have that name in them.
            self._tables.add_mistake(table, error, code=error.code, first=True)
        else:
            if table.is_table:
                self._assemble(name, table)

    def _assemble(self, name: str, table: Table) -> None:
        """Make the device's configuration; report values that contradict each other."""
        wrong = table.wrong | self._tables.top.wrong
        if "mode" in wrong:
            wrong.add("memory")  # only some modes need it, and the mode is unknown
        values = self._values.get("", {}) | self._values.get(table.heading, {})
        try:
            # A device's own options replace those at the top.
            device = options.assemble(name, values)
        except ConfigError as error:
            device = error.config
            for problem in error.problems:
                # An option that is there with a wrong value has its mistake
                # already; do not call it missing too.
                if problem.option not in wrong:
                    self._tables.add_mistake(
                        table, problem.text, problem.option, code=problem.code
                    )
        # Also a device with problems: `conflicts` can then report its files too.
        self._devices.append(device)
