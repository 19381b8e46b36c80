# SPDX-License-Identifier: Apache-2.0
"""The processors of the worker threads."""

import os
import re
from contextlib import suppress

import pytest

from vhostpci_guest.dataplane.cpus import parse_cpus, threads_on

MACHINE = {0, 1, 2, 3, 4, 5, 9}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """A machine with these processors; returns what was set."""
    done: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(MACHINE))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _pid, cpus: done.append(cpus))
    return done


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0", {0}),
        ("0,9", {0, 9}),
        ("2-4", {2, 3, 4}),
        ("3-3", {3}),
        ("0-5:2", {0, 2, 4}),
        ("0-5:9", {0}),
        ("1,3-4,3", {1, 3, 4}),
    ],
)
def test_list_is_read_as_taskset_reads_it(text: str, cpus: set[int]) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "'' in '' is neither"),
        ("1,", "'' in '1,' is neither"),
        ("a", "'a' in 'a' is neither"),
        ("-1", "'-1' in '-1' is neither"),
        ("2-", "'2-' in '2-' is neither"),
        ("1:2", "'1:2' in '1:2' is neither"),
        ("0-3:", "'0-3:' in '0-3:' is neither"),
        ("²", "is neither"),
        ("4-2", "'4-2' in '4-2': the range is empty"),
        ("0-4:0", "'0-4:0' in '0-4:0': the range is empty"),
        ("0-99999999999", "no machine has that processor"),
        ("65536", "no machine has that processor"),
        ("65535", "65535 in '65535': this process may use only 0,1,2,3,4,5,9"),
        ("4-7", "6,7 in '4-7': this process may use only 0,1,2,3,4,5,9"),
    ],
)
def test_wrong_list_is_refused_with_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        parse_cpus(text)


def test_thread_that_starts_others_gets_its_processors_back(
    machine: list[set[int]],
) -> None:
    with suppress(KeyError), threads_on(frozenset({3})):
        assert machine == [{3}]
        raise KeyError
    assert machine == [{3}, MACHINE]


def test_without_a_list_nothing_is_set(machine: list[set[int]]) -> None:
    with threads_on(None):
        pass
    assert machine == []
