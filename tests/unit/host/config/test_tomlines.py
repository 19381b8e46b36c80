# SPDX-License-Identifier: Apache-2.0
"""TOML with its lines, against `tomllib`, which has none."""

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_host.config import tomlines
from vhostpci_host.config.tomlines import Key


def lines(text: str) -> dict[str, int]:
    """The line of each value."""
    document = tomlines.read(text)
    assert not document.mistakes
    return {".".join(leaf.key): leaf.line for leaf in document.leaves}


def mistakes(text: str) -> list[tuple[int, str]]:
    return [(one.line, one.text) for one in tomlines.read(text).mistakes]


@pytest.mark.parametrize(
    "value",
    [
        '"""\n[device.b]\nx = 1\n"""',
        '"""\\\n  """',
        '"""a\n"quoted"\n\\""" b = 1\n"""',
        '"""\nends in two quotes"""""',
        "'''\n[device.b]\n'''",
        "'''\nends in a quote''''",
        '[\n  "]", # ]\n  1,\n]',
        "[\n [1, 2],\n [3],\n]",
        '"# no comment"',
        "'\\'",
        '""',
    ],
)
def test_value_of_many_lines_hides_none_behind_it(value: str) -> None:
    text = f"[device.a]\nfirst = {value}  # [x]\nlast = 1\n"
    end = text.count("\n")
    assert lines(text) == {"device.a.first": 2, "device.a.last": end}


def test_every_way_to_write_a_table_gives_the_same_keys() -> None:
    keys = {"device.a.mode"}
    for text in (
        "[device.a]\nmode=1",
        "device.a.mode=1",
        "device = {a = {mode = 1}}",
        '[device]\n"a" = { mode = 1 }',
        "[ device . 'a' ]\r\n  mode = 1\r\n",
    ):
        assert lines(text).keys() == keys


def test_broken_statements_hide_neither_each_other_nor_what_follows() -> None:
    document = tomlines.read(
        "one = \n[device.a]\ntwo = 'x\nthree = 3\n[device.b\nfour = 4\nfive = ["
        "1,\n[device.c]\nsix = 6\n= 7\n"
    )
    found = {".".join(leaf.key) for leaf in document.leaves}
    assert found == {"device.a.three", "device.c.six"}
    assert [one.line for one in document.mistakes] == [1, 3, 5, 7, 10]
    assert document.broken == {("one",), ("device", "a", "two")}


def test_mistake_in_the_middle_of_a_value_has_its_own_line() -> None:
    assert mistakes("\na = [\n  1,\n  x,\n]\n") == [
        (4, "this is no TOML: invalid value (column 3)")
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = 1\nb = 1\na = 2", "a is there twice, first in line 1"),
        ("[a]\n[b]\n[a]", "table [a] is there twice, first in line 1"),
        ("[a]\n\n[[b]]", "[[b]]: write [b], with single brackets"),
        ("a.b = 1\n\na = 2", "cannot overwrite"),
    ],
)
def test_what_only_shows_in_the_whole_is_told(text: str, said: str) -> None:
    ((line, what),) = mistakes(text)
    assert (line, said in what.lower()) == (3, True), what


@given(st.text(alphabet="[]{}\"'#=\n\\.,ab1 \r", max_size=60) | st.text())
def test_any_text_is_read_as_tomllib_does_or_refused(text: str) -> None:
    document = tomlines.read(text)
    try:
        whole = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        assert document.mistakes
        return
    if not document.mistakes:  # arrays of tables are refused
        read = {leaf.key: leaf.value for leaf in document.leaves}
        assert read == dict(flat((), whole))


def flat(key: Key, value: dict[str, Any]) -> list[tuple[Key, object]]:
    """All values that are no tables, by their full key."""
    found: list[tuple[Key, object]] = []
    for name, inner in value.items():
        if isinstance(inner, dict):
            found += flat((*key, name), inner)
        else:
            found.append(((*key, name), inner))
    return found
