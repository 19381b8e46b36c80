# SPDX-License-Identifier: Apache-2.0
"""What is read from a state is checked against the types of its fields."""

import dataclasses
import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_host.keeper.codec import MOST_TEXTS, _texts, decode, encode
from vhostpci_host.keeper.slots import StateError


@dataclass(frozen=True, slots=True)
class Inner:
    number: int
    name: str | None


@dataclass(frozen=True, slots=True)
class Outer:
    flag: bool
    texts: tuple[str, ...]
    inner: Inner | None
    list: tuple[Inner, ...]


inners = st.builds(Inner, st.integers(0, 2**64 - 1), st.none() | st.text())
outers = st.builds(
    Outer,
    st.booleans(),
    st.lists(st.text()).map(tuple),
    st.none() | inners,
    st.lists(inners).map(tuple),
)


@given(outers)
def test_decoding_is_the_reverse_of_encoding(value: Outer) -> None:
    assert decode(Outer, encode(value)) == value


@given(st.lists(outers, max_size=4))
def test_what_was_encoded_before_has_the_same_text_again(values: list[Outer]) -> None:
    first = [encode(value) for value in values]
    assert [encode(value) for value in values] == first
    assert [json.loads(text) for text in first] == [
        json.loads(json.dumps(dataclasses.asdict(value))) for value in values
    ]


def test_texts_are_not_kept_without_a_limit() -> None:
    for number in range(MOST_TEXTS + 10):
        encode(Outer(True, (), Inner(number, "a"), ()))
    assert len(_texts) <= MOST_TEXTS


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"number":1}',
        b'{"number":1,"name":null,"more":1}',
        b'{"number":"1","name":null}',
        b'{"number":true,"name":null}',
        b'{"number":1.0,"name":null}',
        b'{"number":-1,"name":null}',
        b'{"number":18446744073709551616,"name":null}',
        b'{"number":1,"name":2}',
        b"[" * 100_000,
    ],
)
def test_text_that_does_not_fit_is_refused(text: bytes) -> None:
    with pytest.raises(StateError):
        decode(Inner, text)


@given(st.binary())
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    try:
        decode(Outer, data)
    except StateError:
        return
