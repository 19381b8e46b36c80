# SPDX-License-Identifier: Apache-2.0
"""Numbers for people: sizes, rates, counts and times with their units."""

from collections.abc import Mapping
from typing import Any

_SI = ("", "k", "M", "G", "T", "P")
_BINARY = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: int) -> str:
    """Return a size of memory: 64 KiB, 1 GiB, 1.5 GiB."""
    value, unit = float(count), 0
    while value >= 1024 and unit < len(_BINARY) - 1:
        value, unit = value / 1024, unit + 1
    return f"{_digits(value, whole=unit == 0)} {_BINARY[unit]}"


def confined(found: Mapping[str, Any]) -> str:
    """Return what `confined` says in the JSON of a device: 80 MiB of 4 GiB."""
    whole = f" of {size(found['memory'])}" if found["memory"] else ""
    return f"{size(found['shared'])}{whole}"


def si(value: float, unit: str) -> str:
    """Return a number with three digits and the prefix of its power of 1000: 1.2 GB."""
    power = 0
    while value >= 999.5 and power < len(_SI) - 1:
        value, power = value / 1000, power + 1
    return f"{_digits(value)} {_SI[power]}{unit}"


def count(number: int) -> str:
    """Return a count with groups of three digits."""
    return f"{number:,}"


def short(number: int) -> str:
    """Return a count in at most six characters: 9,999, 48.2M."""
    if number < 10_000:
        return count(number)
    digits, _, unit = si(number, "").partition(" ")
    return f"{digits}{unit}"


def duration(seconds: float) -> str:
    """Return a time with its two greatest units: 3 h 12 min, 45 s."""
    left = max(int(seconds), 0)
    if left < 60:
        return f"{left} s"
    parts: list[str] = []
    for name, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        amount, left = divmod(left, length)
        if amount or parts:
            parts.append(f"{amount} {name}")
        if len(parts) == 2:
            break
    return " ".join(one for one in parts if not one.startswith("0 "))


def _digits(value: float, *, whole: bool = False) -> str:
    """Return a number with at most three digits, and no zeros behind the point."""
    if whole or value >= 99.5 or value == int(value):
        return f"{value:.0f}"
    text = f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"
    return text.rstrip("0").rstrip(".")
