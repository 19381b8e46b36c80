# SPDX-License-Identifier: Apache-2.0
"""Which files can be a master's memory; and that asking does not wait for an answer."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.fakes.frontend import region
from tests.fakes.stuck_fuse import StuckFuse
from tests.fakes.windows import MIB
from vhostpci_host.config.device import DeviceConfig, Mode
from vhostpci_host.fds import Fd, Notifier
from vhostpci_host.memory.arena import Arena
from vhostpci_host.memory.attach import AttachedMemory, WindowIds
from vhostpci_host.memory.filesystems import filesystem, is_memory_file
from vhostpci_shared.wire import ProtocolError

PATIENCE = 5.0
"""Seconds after which a call that waits for the file system fails (OSError)."""


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[Fd]:
    """A file of a file system that does not answer."""
    if os.geteuid():
        pytest.skip("to mount a file system needs root")
    place = tmp_path / "stuck"
    place.mkdir()
    with StuckFuse(place, PATIENCE) as system, Fd(system.open()) as file:
        yield file


def attach_config(directory: Path) -> DeviceConfig:
    return DeviceConfig(name="dev", mode=Mode.ATTACH, run_dir=directory)


def test_memfd_and_tmpfs_are_memory_and_a_disk_is_not(tmp_path: Path) -> None:
    shm = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR, 0o600)
    disk = os.open(tmp_path / "disk", os.O_RDWR | os.O_CREAT)
    with Fd(os.memfd_create("memory")) as memfd, Fd(shm) as tmpfs, Fd(disk) as other:
        assert is_memory_file(memfd)
        assert is_memory_file(tmpfs)
        assert filesystem(tmpfs) == "tmpfs"
        assert is_memory_file(other) == (filesystem(other) == "tmpfs")


def test_memory_on_huge_pages_is_memory() -> None:
    with Fd(os.memfd_create("memory", os.MFD_HUGETLB)) as huge:
        assert is_memory_file(huge)


def test_memory_file_that_was_unlinked_is_memory(shm: Path) -> None:
    """User Mode Linux unlinks its own."""
    path = shm / "memory"
    with Fd(os.open(path, os.O_RDWR | os.O_CREAT)) as file:
        path.unlink()
        assert is_memory_file(file)


def test_memory_on_a_file_system_that_does_not_answer_is_refused_at_once(
    tmp_path: Path, stuck: Fd
) -> None:
    with closing(AttachedMemory(attach_config(tmp_path), WindowIds(256))) as store:
        windows = store.windows(0, lambda: False)
        with pytest.raises(ProtocolError, match="one on fuse: start"):
            windows.place(region(MIB), stuck)


def test_directory_on_tmpfs_is_no_memory(tmp_path: Path, shm: Path) -> None:
    with (
        closing(AttachedMemory(attach_config(tmp_path), WindowIds(256))) as store,
        Fd(os.open(shm, os.O_RDONLY)) as directory,
        pytest.raises(ProtocolError, match="is in no memory file"),
    ):
        store.windows(0, lambda: False).place(region(MIB), directory)


def test_arena_on_a_file_system_that_does_not_answer_is_refused_at_once(
    config: DeviceConfig, stuck: Fd
) -> None:
    with (
        closing(Arena(config)) as arena,
        pytest.raises(ProtocolError, match="is not the arena"),
    ):
        arena.windows(0, lambda: False).place(region(MIB), stuck)


def test_notifier_on_a_file_system_that_does_not_answer_is_refused_at_once(
    stuck: Fd,
) -> None:
    with pytest.raises(ProtocolError, match="no eventfd, no pipe"):
        Notifier.adopt(stuck)
