# SPDX-License-Identifier: Apache-2.0
"""The agent's configuration file: TOML, with the names of the options of `run`.

    user = "vhostpci-guest"           # for the agent
    mtu = 9000                        # for each device, unless it has its own

    [device.web]                      # by the name that the daemon gives the device
    tap = "web0"
    address = ["10.0.0.2/24", "fd00::2/64"]

A device without a table is served as the top of the file says.  `read` reports all
mistakes at once, each with its line.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vhostpci_shared.device_tables import DeviceTables, Form, Place, Rule, Table
from vhostpci_shared.errors import BadValue, code_of
from vhostpci_shared.toml_file import BrokenFile, Document, read_bytes

from ..errors import FileError, Unusable
from ..tap.naming import Override, Rules, Template
from .options import OPTIONS, Option
from .settings import Settings, contradictions, make_settings


def load(path: Path) -> Settings:
    """Read a configuration file.

    Raises:
        FileError: it has mistakes; the text has them all.
        Unusable: it cannot be read.
    """
    return read(path, content(path))


def content(path: Path) -> bytes:
    """Return the bytes of a configuration file.

    Raises:
        FileError: it is no regular file, or too large.
        Unusable: it cannot be read.
    """
    try:
        return read_bytes(path)
    except BrokenFile as error:
        raise FileError(path, [error.mistake]) from error
    except FileNotFoundError:
        raise Unusable(
            f"cannot read {path}: there is no such file; write it first, or name "
            "another one",
            code="G038",
        ) from None
    except PermissionError as error:
        # The helper that reads it again is root, without the capability to read what
        # other users keep to themselves.
        raise Unusable(
            f"cannot read {path}: {error.strerror}; make it root's: chown root {path}",
            code="G039",
        ) from error
    except OSError as error:
        raise Unusable(f"cannot read {path}: {error.strerror}", code="G040") from error


def read(path: Path, data: bytes) -> Settings:
    """Return what a configuration file says, given its bytes.

    Raises:
        FileError: it has mistakes; the text has them all.
    """
    try:
        document = Document(data)
    except BrokenFile as error:
        raise FileError(path, [error.mistake]) from error
    check = _Check(path.absolute().parent, document)
    if mistakes := check.tables.mistakes():
        raise FileError(path, mistakes)
    return check.settings


def _rule(option: Option) -> Rule:
    """Return where a file may have an option, and in which form."""
    place = Place.TOP if option.of_agent else Place.BOTH
    if option.is_number:
        return Rule(place, Form.NUMBER)
    if option.is_yes_no:
        return Rule(place, Form.YES_NO)
    return Rule(place, Form.TEXTS if option.is_list else Form.TEXT)


class _Check:
    """Checks a parsed file, and makes the settings of what is right in it.

    Args:
        base: the file's directory, from which its relative paths count.
        document: the file.
    """

    def __init__(self, base: Path, document: Document) -> None:
        self._base = base
        self._values: dict[str, dict[str, Any]] = {}
        """The values of each table, by its heading."""
        rules = {name: _rule(option) for name, option in OPTIONS.items()}
        self.tables = DeviceTables(document, rules, "agent", self._take)
        self.settings = make_settings(
            self._of(self.tables.top),
            {name: self._of(table) for name, table in self.tables.devices.items()},
        )
        self._check_top()
        for name, table in self.tables.devices.items():
            self._check_device(name, table)
        self._check_unique("tap", lambda rules: rules.tap)
        self._check_unique("mac", lambda rules: rules.mac)

    def _of(self, table: Table) -> Mapping[str, Any]:
        return self._values.get(table.heading, {})

    def _take(self, table: Table, key: str, texts: Sequence[str]) -> None:
        """Keep the value of an option."""
        option = OPTIONS[key]
        values = [self._value(option, text) for text in texts]
        kept = self._values.setdefault(table.heading, {})
        kept[key] = values if option.is_list else values[0]

    def _value(self, option: Option, text: str) -> object:
        # This refuses NUL and lone surrogates, for which the calls of the operating
        # system raise ValueError, and line ends, which would break log lines apart.
        if not text.isprintable():
            raise BadValue(
                f"{option.name} {text!r}: leave out what cannot be printed", code="G041"
            )
        if option.absolute is not None:
            text = option.absolute(text, self._base)
        try:
            value = option.parse(text)
        except (ValueError, Unusable) as why:
            raise BadValue(f"{option.name} {why}", code=code_of(why)) from why
        if isinstance(value, Override):
            raise BadValue(
                f"{option.name} {text!r}: in a file write {option.name} = "
                f'"{value.value}" in the table [device.{value.name}]',
                code="G042",
            )
        return value

    def _check_top(self) -> None:
        """Note which options at the top contradict each other."""
        top, given = self.tables.top, self._of(self.tables.top).keys()
        if {"pci-device", "socket"} <= given:
            self.tables.add_mistake(
                top,
                "pci-device and socket exclude each other: a slave process has no PCI "
                "devices, and a slave VM has no socket of the daemon's",
                "socket",
                code="G043",
            )
        settings = self.settings
        for name, why, code in contradictions(settings.rules, settings.plane, given):
            self.tables.add_mistake(top, f"{name}: {why}", name, code=code)

    def _check_device(self, name: str, table: Table) -> None:
        """Note which options of a device contradict each other."""
        settings = self.settings
        found = contradictions(
            settings.rules.of(name), settings.plane_of(name), self._of(table).keys()
        )
        for option, why, code in found:
            self.tables.add_mistake(table, f"{option}: {why}", option, code=code)

    def _check_unique(
        self, option: str, rule_of: Callable[[Rules], Template | None]
    ) -> None:
        """Note which devices would have one value that only one can have."""
        users: dict[str, str] = {}
        for name, table in self.tables.devices.items():
            rule = rule_of(self.settings.rules.of(name))
            if rule is None or rule.fields or "%d" in rule.text:
                continue
            user = users.setdefault(rule.text, table.heading)
            if user != table.heading:
                self.tables.add_mistake(
                    table,
                    f"{option} {rule.text} is that of {user} too: give each its own",
                    option,
                    code="G044",
                )
