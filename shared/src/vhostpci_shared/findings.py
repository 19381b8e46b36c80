# SPDX-License-Identifier: Apache-2.0
"""What `doctor` finds: the same shape on the hypervisor and in the slave.

A check is a function that looks at a machine and yields what it has `Seen`.  `examine`
calls all checks, and makes a `Finding` of each.  A check that cannot look says so: it
raises `CannotLook`, or lets the OSError of a file through.  It never counts as good.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from typing import Generic, TypeVar

_Machine = TypeVar("_Machine")


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARN = "warn"  # it works, and could go wrong or be faster
    ERROR = "error"  # packets do not cross, or the memory is open to others
    SKIPPED = "skipped"  # not looked at


class CannotLook(Exception):
    """A check cannot look; the text says why, and what would change that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a check has seen of one thing."""

    level: Level
    looked_at: str
    found: str
    means: str = ""
    repair: str = ""
    about: str = ""
    """The device, process or function; empty for the machine as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check has seen, with the check's name: the JSON has the same keys."""

    check: str
    about: str
    level: Level
    looked_at: str
    found: str
    means: str
    repair: str


@dataclass(frozen=True, slots=True)
class Check(Generic[_Machine]):
    """One check."""

    name: str
    """Stable: programs know it by this name."""
    title: str
    """What is looked at, for the table in the documents."""
    look: Callable[[_Machine], Iterable[Seen]]


def ok(looked_at: str, found: str, *, about: str = "", means: str = "") -> Seen:
    """Return that all is well."""
    return Seen(
        level=Level.OK, looked_at=looked_at, found=found, about=about, means=means
    )


def warn(
    looked_at: str, found: str, *, means: str, repair: str, about: str = ""
) -> Seen:
    """Return what works and could be better, or could go wrong later."""
    return Seen(
        level=Level.WARN,
        looked_at=looked_at,
        found=found,
        means=means,
        repair=repair,
        about=about,
    )


def error(
    looked_at: str, found: str, *, means: str, repair: str, about: str = ""
) -> Seen:
    """Return what is wrong."""
    return Seen(
        level=Level.ERROR,
        looked_at=looked_at,
        found=found,
        means=means,
        repair=repair,
        about=about,
    )


def skipped(why: str, *, about: str = "") -> Seen:
    """Return that a thing was not looked at."""
    return Seen(level=Level.SKIPPED, looked_at="", found=why, about=about)


def look_safely(look: Callable[[], Iterable[Seen]], about: str = "") -> Iterator[Seen]:
    """Yield what a check sees; what keeps it from looking becomes `Level.SKIPPED`."""
    try:
        yield from look()
    except CannotLook as why:
        yield skipped(str(why), about=about)
    except PermissionError as why:
        yield skipped(f"{why.filename} is not for this user: run as root", about=about)
    except OSError as why:
        yield skipped(f"{why.filename}: {why.strerror}", about=about)


def examine(checks: Iterable[Check[_Machine]], machine: _Machine) -> Iterator[Finding]:
    """Yield what all checks find."""
    for check in checks:
        seen = list(look_safely(partial(check.look, machine)))
        # A check that has seen nothing has not looked, and must not count as good.
        for one in seen or [skipped("there is nothing to look at yet")]:
            yield Finding(
                check=check.name,
                about=one.about,
                level=one.level,
                looked_at=one.looked_at,
                found=one.found,
                means=one.means,
                repair=one.repair,
            )


def wrong(findings: Iterable[Finding]) -> bool:
    """Whether something is wrong: a warning, or what was not looked at, is not."""
    return any(finding.level is Level.ERROR for finding in findings)


def as_json(findings: Sequence[Finding]) -> str:
    """Return the findings as `doctor -j` prints them."""
    return json.dumps([asdict(finding) for finding in findings], indent=2)
