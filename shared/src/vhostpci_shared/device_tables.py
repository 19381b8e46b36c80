# SPDX-License-Identifier: Apache-2.0
"""A configuration file: options at its top, and a table [device.NAME] for each device.

The daemon and the agent have such a file, with other options.  `DeviceTables` checks
what is the same in both: that each option is known, and stands where it may, and that
its value has the right form.  It keeps all mistakes, so that a user sees them at once.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, Flag, auto
from typing import NamedTuple

from .errors import BadValue
from .toml_file import (
    Document,
    Mistake,
    is_array_of_tables,
    is_number,
    quoted,
    shown,
)

DEVICE = "device"
YES, NO = "yes", "no"


class Place(Flag):
    """Where an option may stand."""

    TOP = auto()
    DEVICE = auto()
    BOTH = TOP | DEVICE


class Form(Enum):
    """What the value of an option is in a file, and how a mistake calls that."""

    TEXT = "a text in quotes"
    NUMBER = "a text in quotes or a number"
    YES_NO = "true or false"
    TEXTS = "a text in quotes, or a list of such texts"


class Rule(NamedTuple):
    """What a file may say of one option."""

    place: Place
    form: Form = Form.TEXT


@dataclass(slots=True)
class Table:
    """A device's table, or the options at the file's top, which have no heading."""

    heading: str = ""
    key: tuple[str, ...] = ()
    is_table: bool = True
    """Whether it was written as a table."""
    texts: dict[str, list[str]] = field(default_factory=dict)
    """What a user would write on the command line for each option."""
    wrong: set[str] = field(default_factory=set)
    """The options that stand in the table with a wrong value."""
    mistakes: list[Mistake] = field(default_factory=list)


class DeviceTables:
    """The tables of a file, with all mistakes in the order of the tables.

    Args:
        document: the file.
        rules: its options, by their names.
        program: whose options are those that may stand only at the top: "the daemon".
        check: checks a text that is the value of an option, and stands in a table;
            raises BadValue.
    """

    def __init__(
        self,
        document: Document,
        rules: Mapping[str, Rule],
        program: str,
        check: Callable[[Table, str, Sequence[str]], None],
    ) -> None:
        self._document = document
        self._rules = rules
        self._program = program
        self._check = check
        self.top = Table()
        self.devices: dict[str, Table] = {}
        for key, value in document.tables.items():
            if key != DEVICE:
                self._check_top(key, value)
        # After the whole top: its options are defaults for every device, even if
        # `device.NAME.OPTION = ...` stands before them.
        self._check_devices(document.tables.get(DEVICE, {}))

    def mistakes(self) -> list[Mistake]:
        """Return all mistakes: those at the top, then those of each device."""
        tables = (self.top, *self.devices.values())
        return [mistake for table in tables for mistake in table.mistakes]

    def add_mistake(
        self,
        table: Table,
        text: object,
        *keys: str,
        code: str,
        first: bool = False,
    ) -> None:
        """Note what is wrong with a table.

        Args:
            table: where it is.
            text: what is wrong, and what to write.
            keys: of the option in the table, if it is about one.
            code: of the mistake.
            first: put it before the table's other mistakes.
        """
        whole = f"{table.heading}: {text}" if table.heading else f"{text}"
        mistake = Mistake(whole, self._document.line(*table.key, *keys), code)
        table.mistakes.insert(0 if first else len(table.mistakes), mistake)

    def _check_top(self, key: str, value: object) -> None:
        rule = self._rules.get(key)
        if is_array_of_tables(value):
            self._only_tables(f"[[{quoted(key)}]]", key)
        # Most likely [NAME] of a device, without the "device.".  A table that has an
        # option's name is a wrong value of that option instead.
        elif isinstance(value, dict) and rule is None:
            self._only_tables(f"[{quoted(key)}]", key)
        elif rule is not None and Place.TOP not in rule.place:
            self.add_mistake(
                self.top,
                f"{key} is for one device: move it to [device.NAME]",
                key,
                code="S002",
            )
        else:
            self._take(self.top, key, value, Place.TOP)

    def _only_tables(self, found: str, key: str) -> None:
        self.add_mistake(
            self.top, f"{found}: there are only tables [device.NAME]", key, code="S003"
        )

    def _check_devices(self, devices: object) -> None:
        if not isinstance(devices, dict):
            self.add_mistake(
                self.top,
                f"{DEVICE} {shown(devices)}: write a table [device.NAME]",
                DEVICE,
                code="S004",
            )
            return
        for name, table in devices.items():
            self._check_device(name, table)

    def _check_device(self, name: str, given: object) -> None:
        heading = f"{DEVICE}.{quoted(name)}"
        table = self.devices[name] = Table(heading, (DEVICE, name))
        table.is_table = isinstance(given, dict)
        if is_array_of_tables(given):
            self.add_mistake(
                table, f"write [{heading}], with single brackets", code="S005"
            )
        elif not isinstance(given, dict):
            self.add_mistake(
                table, f"{shown(given)}: write a table [{heading}]", code="S006"
            )
        else:
            for key, value in given.items():
                self._check_option(table, key, value)

    def _check_option(self, table: Table, key: str, value: object) -> None:
        rule = self._rules.get(key)
        if rule is not None and Place.DEVICE not in rule.place:
            self.add_mistake(
                table,
                f"{key} is for the whole {self._program}: move it to the file's top, "
                "before the first table",
                key,
                code="S007",
            )
        elif isinstance(value, dict):
            self.add_mistake(
                table,
                f"{quoted(key)}: a device's table has no tables in it: remove it",
                key,
                code="S008",
            )
            # `memory.x = 1` gives memory a wrong value; it is not missing as well.
            table.wrong.add(key)
        else:
            self._take(table, key, value, Place.DEVICE)

    def _take(self, table: Table, key: str, value: object, place: Place) -> None:
        """Check one option without regard to the others, and keep its value."""
        try:
            texts = self._texts(key, value, place)
            self._check(table, key, texts)
        except BadValue as error:
            table.wrong.add(key)
            self.add_mistake(table, error, key, code=error.code)
        else:
            table.texts[key] = texts

    def _texts(self, key: str, value: object, place: Place) -> list[str]:
        """Return a value as the texts that a user would write on the command line."""
        rule = self._rules.get(key)
        if rule is None:
            hint = self._other_name(key, place)
            raise BadValue(
                f"{quoted(key)}: there is no such option; {hint}", code="S009"
            )
        if isinstance(value, str):
            return [value]
        # A number where the command line has one.  A `socket-mode = 660` is refused:
        # TOML would take it for decimal, and octal is what its author means.
        if rule.form is Form.NUMBER and is_number(value):
            return [str(value)]
        if rule.form is Form.YES_NO and isinstance(value, bool):
            return [YES if value else NO]
        if rule.form is Form.TEXTS and isinstance(value, list):
            texts = [one for one in value if isinstance(one, str)]
            if len(texts) == len(value):
                return texts
        raise BadValue(f"{key} {shown(value)}: write {rule.form.value}", code="S010")

    def _other_name(self, key: str, place: Place) -> str:
        """Return what a user may have meant by a key that is no option."""
        known = sorted(
            name for name, rule in self._rules.items() if place in rule.place
        )
        near = difflib.get_close_matches(key, known, n=1)
        return f"do you mean {near[0]}?" if near else f"there are {', '.join(known)}"
