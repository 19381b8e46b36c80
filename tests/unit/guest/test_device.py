# SPDX-License-Identifier: Apache-2.0
"""A device's memory in this process."""

import os
import select
from collections.abc import Iterator

import pytest

from vhostpci_guest.device import Mapping

SIZE = 1 << 16


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("window")
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


def test_a_mapping_whose_file_shrinks_is_lost(fd: int) -> None:
    mapping = Mapping(fd, SIZE)
    mapping.view[0] = 1
    assert not mapping.lost
    os.ftruncate(fd, 0)
    assert mapping.view[0] == 0
    assert mapping.lost
    assert select.select([mapping], [], [], 0)[0] == [mapping]
    mapping.close()


def test_a_mapping_that_cannot_be_closed_stays_guarded(fd: int) -> None:
    mapping = Mapping(fd, SIZE)
    part = mapping.view[:8]
    words = part.cast("I")
    part.release()
    with pytest.raises(BufferError):
        mapping.close()
    os.ftruncate(fd, 0)
    assert words[0] == 0
    words.release()
    mapping.close()
