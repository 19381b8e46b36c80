# SPDX-License-Identifier: Apache-2.0
"""What `doctor` finds: the same shape on the hypervisor and in the slave.

A check is a function that looks at a machine and yields what it has `Seen`.  `examine`
calls all checks, and makes a `Finding` of each.  A check that cannot look says so: it
raises `CannotLook`, or lets the OSError of a file through.  It never counts as good.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Generic, TypeVar

_Machine = TypeVar("_Machine")
_One = TypeVar("_One")


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


def _bad(
    level: Level,
    looked_at: str,
    found: str,
    *,
    means: str,
    repair: str,
    about: str = "",
) -> Seen:
    return Seen(
        level=level,
        looked_at=looked_at,
        found=found,
        means=means,
        repair=repair,
        about=about,
    )


warn = partial(_bad, Level.WARN)
"""Return what works and could be better, or could go wrong later."""
error = partial(_bad, Level.ERROR)
"""Return what is wrong."""


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


def check_of_each(
    look: Callable[[_Machine, _One], Iterable[Seen]],
    things: Callable[[_Machine], Sequence[_One]],
    name: Callable[[_One], str],
    nothing: Callable[[_Machine], str],
) -> Callable[[_Machine], Iterator[Seen]]:
    """Return the check that looks at several things of a machine, one by one.

    What keeps it from looking at one does not keep it from the others.

    Args:
        look: looks at one of them.
        things: returns all of them.
        name: returns what one is called in the findings.
        nothing: returns why there is none.
    """

    def look_at_all(machine: _Machine) -> Iterator[Seen]:
        found = things(machine)
        if not found:
            raise CannotLook(nothing(machine))
        for one in found:
            about = name(one)
            for seen in look_safely(partial(look, machine, one), about):
                yield replace(seen, about=about)

    return look_at_all


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
