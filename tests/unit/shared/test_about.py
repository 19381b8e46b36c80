# SPDX-License-Identifier: Apache-2.0
"""What an agent tells people of itself."""

from hypothesis import given
from hypothesis import strategies as st

from vhostpci_shared.about import About, AboutFlag, Uncounted


def test_entry_comes_back_as_it_was_written() -> None:
    entry = About(
        instance=7,
        uncounted=Uncounted.DROPS | Uncounted.KICKS,
        flags=AboutFlag.INTERRUPTS,
        version="0.1.0",
        port="net0",
    )
    assert About.parse(bytes(entry)) == entry


def test_long_text_is_cut() -> None:
    assert About.parse(bytes(About(port="/" * 200))).port == "/" * 96


@given(st.binary(min_size=About.layout.size, max_size=About.layout.size))
def test_any_bytes_are_an_entry_that_is_harmless_to_show(data: bytes) -> None:
    entry = About.parse(data)
    assert (entry.version + entry.port).isprintable()
    assert 0 <= entry.uncounted < 32
