# SPDX-License-Identifier: Apache-2.0
"""How checks are called, and what is printed of them."""

import json
from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.fakes.machine import FakeMachine
from vhostpci_shared.findings import (
    CannotLook,
    Check,
    Finding,
    Level,
    Seen,
    as_json,
    error,
    examine,
    ok,
    warn,
    wrong,
)
from vhostpci_shared.print_findings import lines
from vhostpci_shared.terminal import Terminal


def findings(look: Callable[[FakeMachine], Iterable[Seen]]) -> list[Finding]:
    """Return what one check finds on a machine with a single, secret file."""
    machine = FakeMachine()
    machine.files["/secret"] = ""
    machine.hidden.add("/secret")
    return list(examine([Check("one", "a title", look)], machine))


def bad(_: FakeMachine) -> Iterator[Seen]:
    yield ok("/a", "a is fine")
    yield error("/b", "b is full", means="VMs end", repair="rm /b", about="web")


def test_a_finding_has_the_name_of_its_check() -> None:
    assert [(one.check, one.about, one.level) for one in findings(bad)] == [
        ("one", "", Level.OK),
        ("one", "web", Level.ERROR),
    ]


def refused(machine: FakeMachine) -> Iterator[Seen]:
    yield ok("/secret", machine.text("/secret"))


def absent(machine: FakeMachine) -> Iterator[Seen]:
    yield ok("/absent", machine.text("/absent"))


def without_master(_: FakeMachine) -> Iterator[Seen]:
    raise CannotLook("no master is connected")


@pytest.mark.parametrize(
    ("look", "why"),
    [
        (refused, "/secret is not for this user: run as root"),
        (absent, "/absent: No such file or directory"),
        (without_master, "no master is connected"),
        (lambda _: [], "there is nothing to look at yet"),
    ],
)
def test_a_check_that_cannot_look_is_not_good(
    look: Callable[[FakeMachine], Iterable[Seen]], why: str
) -> None:
    (found,) = findings(look)
    assert (found.level, found.found) == (Level.SKIPPED, why)


def test_only_an_error_is_wrong() -> None:
    assert wrong(findings(bad))
    assert not wrong(findings(refused))
    assert not wrong(findings(lambda _: [warn("/a", "x", means="y", repair="z")]))


def test_json_has_all_of_a_finding() -> None:
    assert json.loads(as_json(findings(bad)))[1] == {
        "check": "one",
        "about": "web",
        "level": "error",
        "looked_at": "/b",
        "found": "b is full",
        "means": "VMs end",
        "repair": "rm /b",
    }


def test_people_see_what_is_wrong_and_what_repairs_it() -> None:
    found = [*findings(bad), *findings(without_master), *findings(refused)]
    assert list(lines(found, Terminal())) == [
        "ok     one: a is fine (/a)",
        "error  one: web: b is full",
        "       looked at  /b",
        "       means      VMs end",
        "       repair     rm /b",
        "-      not looked at: one: no master is connected",
        "-      not looked at: one: /secret is not for this user: run as root",
        "",
        "1 error, 1 ok, 2 not looked at",
    ]


def test_forty_columns_are_enough() -> None:
    printed = list(lines(findings(bad) + findings(refused), Terminal(40)))
    assert max(map(len, printed)) <= 40
    assert "       repair     rm /b" in printed
