# SPDX-License-Identifier: Apache-2.0
"""A master that maps its memory privately is refused: no packet would reach it.

The master is a separate process here, as its QEMU is, because the process of the test
has shared mappings of the same files.
"""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.fakes.mapping_process import mapped_by_a_process
from tests.fakes.windows import MIB
from vhostpci_host.config.device import DeviceConfig
from vhostpci_host.fds import Fd
from vhostpci_host.memory.arena import Arena, ArenaWindows
from vhostpci_host.memory.attach import AttachedMemory, AttachedWindows, WindowIds
from vhostpci_shared.vhost_user import MemRegion
from vhostpci_shared.wire import ProtocolError

REGION = MemRegion(0, MIB, 0, 0)


@pytest.fixture
def arena(config: DeviceConfig) -> Iterator[Arena]:
    with closing(Arena(config)) as arena:
        yield arena


@pytest.fixture
def memory(shm: Path) -> Path:
    """A memory file of the master's own, as in attach mode."""
    path = shm / "memory"
    path.write_bytes(bytes(MIB))
    return path


@contextmanager
def attached(config: DeviceConfig, pid: int) -> Iterator[AttachedWindows]:
    with closing(AttachedMemory(config, WindowIds(256))) as store:
        yield store.windows(pid, lambda: False)


@contextmanager
def opened(path: Path) -> Iterator[Fd]:
    with Fd(os.open(path, os.O_RDWR)) as fd:
        yield fd


def test_arena_that_the_master_maps_privately_is_refused(arena: Arena) -> None:
    with (
        mapped_by_a_process(arena.path, "MAP_PRIVATE") as pid,
        opened(arena.path) as fd,
        pytest.raises(ProtocolError, match=rf"pid {pid}\) maps .* privately.*share=on"),
    ):
        ArenaWindows(arena, pid).place(REGION, fd)


def test_memory_that_the_master_maps_privately_is_refused(
    config: DeviceConfig, memory: Path
) -> None:
    with (
        mapped_by_a_process(memory, "MAP_PRIVATE") as pid,
        attached(config, pid) as windows,
        opened(memory) as fd,
        pytest.raises(ProtocolError, match=rf"pid {pid}\) maps .* privately.*share=on"),
    ):
        windows.place(REGION, fd)


SHARED = [("MAP_SHARED",), ("MAP_PRIVATE", "MAP_SHARED"), ()]


@pytest.mark.parametrize("flags", SHARED)
def test_arena_with_a_shared_mapping_or_none_is_taken(
    arena: Arena, flags: tuple[str, ...]
) -> None:
    with mapped_by_a_process(arena.path, *flags) as pid, opened(arena.path) as fd:
        assert ArenaWindows(arena, pid).place(REGION, fd).window == 0


@pytest.mark.parametrize("flags", SHARED)
def test_memory_with_a_shared_mapping_or_none_is_taken(
    config: DeviceConfig, memory: Path, flags: tuple[str, ...]
) -> None:
    with (
        mapped_by_a_process(memory, *flags) as pid,
        attached(config, pid) as windows,
        opened(memory) as fd,
    ):
        assert windows.place(REGION, fd).window == 256
