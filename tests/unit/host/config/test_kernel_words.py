# SPDX-License-Identifier: Apache-2.0
"""Words of a kernel's command line, as Linux reads it."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_host.config.kernel_words import LEND_NOTHING, lacking, split

KEY = "sysctl.vm.lowmem_reserve_ratio"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a  b=1\tc\n", ["a", "b=1", "c"]),
        (f'{KEY}="1 1" b', [f"{KEY}=1 1", "b"]),
        (f'"{KEY}=1 1" b', [f"{KEY}=1 1", "b"]),
        ('a "b c', ["a", "b c"]),
        ("a -- numa=off", ["a"]),
        ("", []),
    ],
)
def test_quotes_keep_blanks_together(line: str, words: list[str]) -> None:
    assert split(line) == words


@given(st.text('a= "-'))
def test_any_line_is_taken(line: str) -> None:
    for word in split(line):
        assert '"' not in word


def test_word_that_keeps_the_ring_area_is_one_word_for_linux_and_for_a_shell() -> None:
    assert split(LEND_NOTHING) == shlex.split(LEND_NOTHING) == [f"{KEY}=1 1"]


def test_last_word_of_a_key_counts() -> None:
    wanted = ["cma=16M", "numa=off", LEND_NOTHING]
    assert lacking(f'cma=8M cma=16M numa=off "{KEY}=1 1"', wanted) == []
    assert lacking(f"cma=16M cma=8M numa=off {KEY}=1", wanted) == [
        "cma=16M",
        LEND_NOTHING,
    ]
    assert lacking(f"cma=16M -- numa=off {LEND_NOTHING}", wanted) == wanted[1:]
