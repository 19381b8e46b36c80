# SPDX-License-Identifier: Apache-2.0
"""The configuration file: TOML, with the command line's names.

    run-dir = "/run/vhostpci"         # for the daemon, and defaults for its devices
    socket-group = "libvirt-qemu"

    [device.web]
    memory = "1G"

    [device.db]
    mode = "attach"
    queue-pairs = 4

All that is wrong with it is told at once, each with its line.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import HostError, explain
from . import options, tomlines
from .device import RUN_DIR, ConfigError, DeviceConfig, check_name, conflicts
from .tomlines import Leaf, Mistake

DEVICE = "device"


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a file says, all of it checked."""

    run_dir: Path
    shared: dict[str, str]
    """The options at its top: defaults for a device that is added later."""
    devices: tuple[DeviceConfig, ...]


class FileError(HostError):
    """A file that says what cannot be; the text has a line for each mistake."""

    def __init__(self, path: Path, mistakes: Sequence[Mistake]) -> None:
        ordered = sorted(mistakes, key=lambda mistake: mistake.line)
        super().__init__("\n".join(f"{path}:{one.line}: {one.text}" for one in ordered))


def load(path: Path) -> ConfigFile:
    """Read a configuration file.

    Raises:
        FileError: it has mistakes; the text tells them all.
        HostError: it cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise explain("read", path, error) from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        wrong = Mistake(line, f"byte {data[error.start]:#x} is no UTF-8: remove it")
        raise FileError(path, [wrong]) from error
    check = _Check(path.absolute().parent, text)
    if check.mistakes:
        raise FileError(path, check.mistakes)
    return check.result()


@dataclass(slots=True)
class _Table:
    """A device's table, or the file's top."""

    line: int
    lines: dict[str, int] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    values: dict[str, object] = field(default_factory=dict)
    wrong: set[str] = field(default_factory=set)


class _Check:
    """One reading of a file."""

    def __init__(self, base: Path, text: str) -> None:
        document = tomlines.read(text)
        self.mistakes = document.mistakes
        self.devices: list[DeviceConfig] = []
        self._base = base
        self._top = _Table(1)
        self._tables: dict[str, _Table] = {}
        for key, line in document.tables.items():
            self._open(key, line)
        for leaf in document.leaves:
            self._place(leaf)
        for key in document.broken:
            self._note_broken(key)
        for name, table in self._tables.items():
            self._assemble(name, table)
        self._find_conflicts()

    def result(self) -> ConfigFile:
        """Return what it says; there were no mistakes."""
        run_dir = self._top.values.get("run-dir", RUN_DIR)
        assert isinstance(run_dir, Path), "a path option"
        return ConfigFile(run_dir, self._top.texts, tuple(self.devices))

    def _mistake(self, line: int, text: str) -> None:
        self.mistakes.append(Mistake(line, text))

    def _open(self, key: tuple[str, ...], line: int) -> None:
        match key:
            case ("device",):
                return
            case ("device", name):
                self._table(name, line)
            case _:
                self._mistake(
                    line,
                    f"[{'.'.join(key)}]: there are only tables [device.NAME]",
                )

    def _table(self, name: str, line: int) -> _Table:
        if name not in self._tables:
            self._tables[name] = _Table(line)
            try:
                check_name(name)
            except HostError as error:
                self._mistake(line, str(error))
        return self._tables[name]

    def _place(self, leaf: Leaf) -> None:
        """Find out what a value is for."""
        match leaf.key:
            case (name,):
                self._place_top(name, leaf)
            case ("device", name):
                self._mistake(
                    leaf.line,
                    f"device.{name} {leaf.value!r}: write a table [device.{name}]",
                )
            case ("device", name, option):
                self._place_device(name, option, leaf)
            case (*table, _) if tuple(table[:1]) != (DEVICE,):
                self._mistake(
                    leaf.line, f"{'.'.join(leaf.key)}: there is no such option"
                )
            case _:
                self._mistake(
                    leaf.line,
                    f"{'.'.join(leaf.key)}: a device's table has no tables in it",
                )

    def _note_broken(self, key: tuple[str, ...]) -> None:
        """Don't call missing what is there and cannot be read."""
        match key:
            case (option,):
                self._top.wrong.add(option)
            case ("device", name, option) if name in self._tables:
                self._tables[name].wrong.add(option)

    def _place_top(self, name: str, leaf: Leaf) -> None:
        if name in options.OPTIONS and name not in options.SHARED:
            self._mistake(
                leaf.line, f"{name} is for one device: move it to a [device.NAME]"
            )
        else:
            self._take(self._top, "", name, leaf, sorted(options.SHARED))

    def _place_device(self, name: str, option: str, leaf: Leaf) -> None:
        table = self._table(name, leaf.line)
        if option == options.RUN_DIR.name:
            self._mistake(
                leaf.line,
                f"{name}: run-dir is for the whole daemon: move it to the file's top, "
                "before the first table",
            )
        else:
            known = options.OPTIONS.keys() - {options.RUN_DIR.name}
            self._take(table, f"{name}: ", option, leaf, sorted(known))

    def _take(
        self, table: _Table, who: str, name: str, leaf: Leaf, known: list[str]
    ) -> None:
        """Check one value by itself."""
        table.lines[name] = leaf.line
        try:
            text = self._text(name, leaf.value, known)
            table.values[name] = options.value(name, text)
        except HostError as error:
            table.wrong.add(name)
            self._mistake(leaf.line, f"{who}{error}")
        else:
            table.texts[name] = text

    def _text(self, name: str, value: object, known: list[str]) -> str:
        """Return a value as the text that the command line would have."""
        option = options.OPTIONS.get(name)
        if option is None:
            near = difflib.get_close_matches(name, known, n=1)
            mend = f"do you mean {near[0]}?" if near else f"there are {_list(known)}"
            raise HostError(f"{name}: there is no such option; {mend}")
        if isinstance(value, str):
            return options.absolute(option, value, self._base)
        if option.is_number and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        or_number = " or a number" if option.is_number else ""
        raise HostError(f"{name} {value!r}: write a text in quotes{or_number}")

    def _assemble(self, name: str, table: _Table) -> None:
        """Check what only goes wrong together."""
        wrong = table.wrong | self._top.wrong
        if "mode" in wrong:
            wrong.add("memory")  # whether it is wanted, nobody can tell
        try:
            device = options.assemble(name, {**self._top.values, **table.values})
        except ConfigError as error:
            device = error.config
            for problem in error.problems:
                if problem.option not in wrong:
                    line = self._line(table, problem.option)
                    self._mistake(line, f"{name}: {problem.text}")
        self.devices.append(device)

    def _line(self, table: _Table, option: str) -> int:
        return table.lines.get(option) or self._top.lines.get(option) or table.line

    def _find_conflicts(self) -> None:
        for device, other, text in conflicts(self.devices):
            table = self._tables[device.name]
            own = "socket-path" if "vhost-user" in text else "memory-dir"
            first = self._tables[other.name].line if other else 0
            where = f" (line {first})" if first else ""
            self._mistake(self._line(table, own), f"{device.name}: {text}{where}")


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)
