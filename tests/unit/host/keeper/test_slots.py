# SPDX-License-Identifier: Apache-2.0
"""A state survives a daemon that is killed at any moment while it writes one."""

import os
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_host.fds import Fd
from vhostpci_host.keeper.slots import (
    MAGIC,
    SLOT_SIZE,
    Mark,
    StateError,
    StateFile,
)


@pytest.fixture
def file() -> Iterator[StateFile]:
    with closing(StateFile.new()) as file:
        yield file


def reopened(file: StateFile) -> StateFile:
    return StateFile.left(file.file.copy())


def contents(file: StateFile) -> dict[int, int]:
    """Return the first bytes of each slot by their offsets."""
    found: dict[int, int] = {}
    for start in (0x1000, 0x1000 + SLOT_SIZE):
        found |= enumerate(os.pread(file.file.fileno(), 100, start), start)
    return found


def test_successor_reads_the_text_that_was_written_last(file: StateFile) -> None:
    for text in (b"one", b"two", b"", b"four, which is longer"):
        file.write(text)
        with closing(reopened(file)) as found:
            assert found.read() == text


def test_successor_goes_on_writing(file: StateFile) -> None:
    file.write(b"one")
    with closing(reopened(file)) as found:
        found.read()
        for text in (b"two", b"three"):
            found.write(text)
            with closing(reopened(found)) as next_one:
                assert next_one.read() == text


@given(st.binary(min_size=1, max_size=40), st.binary(max_size=40), st.data())
def test_half_written_text_leaves_the_one_before(
    last: bytes, torn: bytes, data: st.DataObject
) -> None:
    """Whatever bytes of the new text and its entry have arrived."""
    with closing(StateFile.new()) as file:
        file.write(b"the first")
        file.write(last)
        before = contents(file)
        file.write(torn)
        after = contents(file)
        changed = [at for at in after if before[at] != after[at]]
        arrived = data.draw(st.sets(st.sampled_from(changed), max_size=len(changed)))
        for at in set(changed) - arrived:
            os.pwrite(file.file.fileno(), bytes([before[at]]), at)
        with closing(reopened(file)) as found:
            assert found.read() == (torn if arrived == set(changed) else last)


def test_file_without_a_text_is_refused(file: StateFile) -> None:
    with closing(reopened(file)) as found, pytest.raises(StateError, match="no text"):
        found.read()


def test_file_of_another_version_is_refused(file: StateFile) -> None:
    file.write(b"text")
    os.pwrite(file.file.fileno(), (2).to_bytes(4, "little"), len(MAGIC))
    with (
        file.file.copy() as copy,
        pytest.raises(StateError, match="of another version"),
    ):
        StateFile.left(copy)


def test_file_that_could_be_cut_is_refused() -> None:
    """An access behind its end would end the daemon."""
    with Fd(os.memfd_create("cut")) as file:
        os.ftruncate(file.fileno(), 0x1000 + 2 * SLOT_SIZE)
        with pytest.raises(StateError, match="seals"):
            StateFile.left(file)


def test_what_is_no_memfd_is_refused() -> None:
    with (
        Fd(os.open("/proc/self/exe", os.O_RDONLY)) as file,
        pytest.raises(StateError, match="no memfd"),
    ):
        StateFile.left(file)


def test_text_that_is_longer_than_a_slot_is_refused(file: StateFile) -> None:
    file.write(b"text")
    with pytest.raises(StateError, match="too long"):
        file.write(bytes(SLOT_SIZE))
    with closing(reopened(file)) as found:
        assert found.read() == b"text"


def test_marks_are_seen_by_the_successor(file: StateFile) -> None:
    file.write(b"text")
    for number, mark in enumerate(Mark):
        file.set_mark(mark, number + 2**40)
    with closing(reopened(file)) as found:
        assert [found.mark(mark) for mark in Mark] == [
            number + 2**40 for number in range(len(Mark))
        ]
