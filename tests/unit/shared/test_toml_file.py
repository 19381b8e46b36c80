# SPDX-License-Identifier: Apache-2.0
"""Where the keys of a TOML file stand."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_shared.toml_file import BrokenFile, Document, Mistake

TEXT = '''# a comment = 1
top = """
[device.fake]
"""
list = [
  "a", # x = 1
]

[device.web]   # a heading
  mtu = 1
"quoted key" = 2
[device."a.b"]
tap.x.y.z.u = 3
'''


@pytest.mark.parametrize(
    ("key", "line"),
    [
        (("top",), 2),
        (("list",), 5),
        (("device", "web"), 9),
        (("device", "web", "mtu"), 10),
        (("device", "web", "quoted key"), 11),
        (("device", "a.b"), 12),
        (("device", "a.b", "tap", "x", "y", "z", "u"), 13),
        (("device", "web", "missing"), 9),  # the table that lacks it
        (("device", "fake", "x"), 9),
        (("missing",), None),
    ],
)
def test_key_has_the_line_where_it_stands(
    key: tuple[str, ...], line: int | None
) -> None:
    assert Document(TEXT.encode()).line(*key) == line


def test_lines_end_where_a_statement_is_too_long() -> None:
    long = "a = [\n" + "1,\n" * 600 + "]\n"
    assert Document(f"b = 1\n{long}c = 1".encode()).line("b") == 1
    assert Document(f"b = 1\n{long}c = 1".encode()).line("c") is None


def test_mistake_stays_one_line() -> None:
    said = Mistake("it is 'a\nb'", 3).of(Path("/x.toml"))
    assert said == "/x.toml:3: it is 'a b'"


@given(st.text(alphabet="ab=[]{}.\"'#\n 1,"))
def test_any_document_has_a_line_for_each_key_or_none(text: str) -> None:
    try:
        document = Document(text.encode())
    except BrokenFile:
        return
    for key in document.tables:
        line = document.line(key)
        assert line is not None
        assert text.split("\n")[line - 1].strip()
