# SPDX-License-Identifier: Apache-2.0
"""Read the command line of a QEMU that runs, as /proc shows it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

_IMPLICIT = {
    "device": "driver",
    "object": "qom-type",
    "machine": "type",
    "M": "type",
    "chardev": "backend",
    "netdev": "type",
    "cpu": "model",
    "m": "size",
}
"""What the first word of an option's value is called if it has no "=": qemu(1)."""

Values = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CommandLine:
    """The options of one QEMU, each with its values by name."""

    program: str
    options: tuple[tuple[str, Values], ...]
    plain: tuple[tuple[str, str], ...] = ()
    """The same, each value as it is written."""

    @classmethod
    def parse(cls, text: str) -> "CommandLine":
        """Read the text of /proc/PID/cmdline; no text is wrong, as it is foreign."""
        words = text.split("\0")
        plain = [
            (option.lstrip("-"), value)
            for option, value in pairwise(words[1:])
            if option.startswith("-")
        ]
        found = ((name, _values(name, value)) for name, value in plain)
        return cls(words[0], tuple(found), tuple(plain))

    def all(self, *names: str) -> Iterator[Values]:
        """Yield the values of each of these options."""
        for name, values in self.options:
            if name in names:
                yield values

    def texts(self, name: str) -> Iterator[str]:
        """Yield the values of each option of this name, as they are written."""
        return (value for one, value in self.plain if one == name)

    def devices(self, *drivers: str) -> Iterator[Values]:
        """Yield the devices of these drivers."""
        return (one for one in self.all("device") if one.get("driver") in drivers)

    def sockets(self, path: str) -> Iterator[Values]:
        """Yield the chardevs that are a socket at this path."""
        return (one for one in self.all("chardev") if one.get("path") == path)

    @property
    def memory(self) -> int | None:
        """Bytes of `-m`; None if it is not there or not understood."""
        for values in self.all("m"):
            found = size_of(values.get("size", ""), unit=1 << 20)
            if found is not None:
                return found
        return None


_UNITS = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _values(option: str, text: str) -> dict[str, str]:
    """Return the values of one option by their names."""
    # libvirt writes many options as JSON.
    if text.startswith("{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return {}
        return {key: _text(value) for key, value in found.items()}
    values: dict[str, str] = {}
    for number, word in enumerate(_split(text)):
        key, equals, value = word.partition("=")
        if equals:
            values[key] = value
        elif number == 0 and option in _IMPLICIT:
            values[_IMPLICIT[option]] = word
        else:
            values[key] = "on"  # `server` is short for `server=on`, `noX` is rare
    return values


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return value if isinstance(value, str) else json.dumps(value)


def _split(text: str) -> Iterator[str]:
    """Split at single commas; a double one stands for a comma (qemu-options)."""
    # No word of a command line has a zero byte in it.
    for word in text.replace(",,", "\0").split(","):
        yield word.replace("\0", ",")


def number(text: str) -> int | None:
    """Return a decimal number of at most 18 digits; None for any other text."""
    # int() takes a second for a million digits, and refuses more than 4300.
    return int(text) if text.isdecimal() and len(text) <= 18 else None


def size_of(text: str, *, unit: int = 1) -> int | None:
    """Return the bytes of a size; None if it is not understood.

    Args:
        text: the size, with a letter for its unit or without.
        unit: what it is in without a letter.
    """
    found = number(text.rstrip("bkmgtBKMGT"))
    return None if found is None else found * _UNITS.get(text[-1:].upper(), unit)


def is_on(values: Values, name: str, default: str = "off") -> bool:
    """Whether a property that is on or off is on."""
    return values.get(name, default) in ("on", "yes", "true", "y")
