# SPDX-License-Identifier: Apache-2.0
"""Damage to the arena: repaired, unless the master's own RAM lies there.

The master is a separate process here, since this process maps the metadata itself.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes import tmpfs
from tests.fakes.frontend import region
from tests.fakes.windows import MIB
from vhostpci_host.config.device import DeviceConfig
from vhostpci_host.errors import HostError
from vhostpci_host.fds import Fd
from vhostpci_host.memory import arena_metadata
from vhostpci_host.memory.arena import Arena
from vhostpci_host.memory.arena_metadata import ArenaMetadata
from vhostpci_shared import metadata as md
from vhostpci_shared.vhost_user import MemRegion
from vhostpci_shared.wire import ProtocolError

WINDOW = 32 * MIB

MASTER = """
import mmap, os, sys
path, size = sys.argv[1], int(sys.argv[2])
with open(path, "r+b") as file:
    if size > os.fstat(file.fileno()).st_size:
        os.ftruncate(file.fileno(), size)
    memory = mmap.mmap(file.fileno(), size)
print("mapped", flush=True)
for line in sys.stdin:
    memory[:] = bytes([7]) * size
    print("written", flush=True)
"""


class Process:
    """A process that maps the arena's first bytes as its RAM, as a QEMU does."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self.pid = process.pid
        self._expect(b"mapped\n")

    def write_all(self) -> None:
        """Write to every byte of its RAM."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        self._expect(b"written\n")

    def _expect(self, line: bytes) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == line


@contextmanager
def master(path: Path, size: int) -> Iterator[Process]:
    with subprocess.Popen(
        [sys.executable, "-S", "-c", MASTER, path, str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        yield Process(process)
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def arena(config: DeviceConfig) -> Iterator[Arena]:
    with closing(Arena(config)) as arena:
        arena.metadata.format()
        yield arena


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """What any process maps, as where the daemon is another user than the QEMUs."""
    monkeypatch.setattr(arena_metadata, "mapped_end", lambda *_: None)


def overwrite_metadata(path: Path) -> None:
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), bytes(md.SIZE), WINDOW - md.SIZE)


def end_of(path: Path) -> bytes:
    """Return what the file itself has where the metadata belongs."""
    with path.open("rb") as file:
        return os.pread(file.fileno(), md.SIZE, WINDOW - md.SIZE)


# Another process has damaged it.


@pytest.mark.parametrize("size", [0, MIB, WINDOW - md.SIZE, WINDOW - 1])
def test_arena_that_was_cut_gets_its_size_and_its_metadata_back(
    arena: Arena, size: int
) -> None:
    os.truncate(arena.path, size)
    assert f"another process cut {arena.path}" in arena.restore()
    assert arena.path.stat().st_size == WINDOW
    arena.metadata.format()
    assert end_of(arena.path).startswith(md.MAGIC)
    assert arena.restore() == ""
    assert arena.new_problems() == []


def test_metadata_that_was_overwritten_is_written_again(arena: Arena) -> None:
    overwrite_metadata(arena.path)
    assert f"another process wrote over the end of {arena.path}" in arena.restore()


def test_arena_that_was_cut_is_repaired_when_the_file_system_has_space_again(
    config: DeviceConfig, small: Path
) -> None:
    with closing(Arena(replace(config, memory_dir=small))) as arena:
        arena.metadata.format()
        os.truncate(arena.path, 0)
        filler = tmpfs.fill(small)
        assert arena.restore() == ""
        (problem,) = arena.new_problems()
        assert problem.startswith(f"no space left in {small}")
        assert arena.restore() == ""
        assert arena.new_problems() == []
        assert arena.problem == problem
        filler.unlink()
        assert "has space again" in arena.restore()
        arena.metadata.format()
        assert end_of(arena.path).startswith(md.MAGIC)
        assert arena.problem == ""


def test_metadata_has_a_whole_page_of_its_own_where_pages_are_larger(
    shm: Path,
) -> None:
    """Half a huge page can be neither reserved nor mapped."""
    path = shm / "arena"
    with Fd(os.open(path, os.O_RDWR | os.O_CREAT)) as file:
        os.truncate(path, WINDOW)
        ArenaMetadata(path, file, size=WINDOW, ram=MIB, page=2 * MIB).close()
        assert path.stat().st_blocks * 512 == 2 * MIB


# A master has more RAM than the device.


@pytest.mark.parametrize("size", [WINDOW, 2 * WINDOW])
def test_nothing_is_written_into_the_ram_of_a_master_that_has_too_much(
    arena: Arena, size: int
) -> None:
    with master(arena.path, size) as process:
        arena.windows(process.pid, lambda: False)
        process.write_all()
        for _ in range(3):
            assert arena.restore() == ""
            arena.metadata.beat()
        arena.metadata.format()
        assert end_of(arena.path) == bytes([7]) * md.SIZE
        (problem,) = arena.new_problems()
        assert f"{size >> 20} MiB instead of 16 MiB" in problem
        assert f"pid {process.pid}" in problem
        assert arena.describe()["problem"] == problem
    assert "the master that had more RAM" in arena.restore()
    arena.metadata.format()
    assert end_of(arena.path).startswith(md.MAGIC)
    assert arena.path.stat().st_size == WINDOW
    assert arena.describe()["problem"] is None


def test_arena_that_a_master_lengthens_before_it_connects_is_left_to_it(
    arena: Arena,
) -> None:
    with master(arena.path, 2 * WINDOW) as process:
        process.write_all()
        for _ in range(3):
            assert arena.restore() == ""
            arena.metadata.beat()
        arena.windows(process.pid, lambda: False)
        assert arena.restore() == ""
        assert end_of(arena.path) == bytes([7]) * md.SIZE
    assert "the master that had more RAM" in arena.restore()


def test_table_of_a_master_that_has_too_much_ram_is_refused_with_the_sizes(
    arena: Arena,
) -> None:
    with master(arena.path, WINDOW) as process:
        windows = arena.windows(process.pid, lambda: False)
        with pytest.raises(ProtocolError, match="32 MiB instead of 16 MiB"):
            windows.place(MemRegion(0, WINDOW, 0, 0), arena.file)


def test_front_end_that_only_claims_too_much_ram_stops_nothing(
    arena: Arena,
) -> None:
    with master(arena.path, arena.ram) as process:
        windows = arena.windows(process.pid, lambda: False)
        with pytest.raises(ProtocolError, match="reaches into the metadata"):
            windows.place(MemRegion(0, WINDOW, 0, 0), arena.file)
        assert arena.problem == ""
        windows.place(region(arena.ram), arena.file)


def test_front_end_of_an_unknown_process_that_claims_too_much_ram_stops_nothing(
    arena: Arena,
) -> None:
    """It would never be known to have ended."""
    windows = arena.windows(0, lambda: False)
    with pytest.raises(ProtocolError, match="reaches into the metadata"):
        windows.place(MemRegion(0, WINDOW, 0, 0), arena.file)
    assert arena.problem == ""


def test_next_master_is_served_as_soon_as_it_connects(arena: Arena) -> None:
    """It does not send a memory table again that was refused."""
    with master(arena.path, 2 * WINDOW) as process:
        arena.windows(process.pid, lambda: False)
        process.write_all()
    with master(arena.path, arena.ram) as process:
        arena.windows(process.pid, lambda: False).place(region(arena.ram), arena.file)
        assert "the master that had more RAM" in arena.restore(sizes=False)
        arena.metadata.format()
        assert end_of(arena.path).startswith(md.MAGIC)


def test_second_master_does_not_hide_the_one_that_has_too_much_ram(
    arena: Arena,
) -> None:
    with master(arena.path, WINDOW) as large:
        arena.windows(large.pid, lambda: False)
        with master(arena.path, arena.ram) as process:
            windows = arena.windows(process.pid, lambda: False)
            large.write_all()
            with pytest.raises(ProtocolError, match=f"pid {large.pid}"):
                windows.place(region(arena.ram), arena.file)
            assert arena.restore() == ""
            assert end_of(arena.path) == bytes([7]) * md.SIZE


def test_master_that_we_may_not_look_at_is_believed_to_have_what_it_says(
    arena: Arena, hidden: None
) -> None:
    with master(arena.path, WINDOW) as process:
        windows = arena.windows(process.pid, lambda: False)
        windows.place(MemRegion(0, MIB, 0, 0), arena.file)
        with pytest.raises(ProtocolError, match="reaches into the metadata"):
            windows.place(MemRegion(MIB, WINDOW - MIB, MIB, MIB), arena.file)
        process.write_all()
        assert arena.restore() == ""
        arena.metadata.beat()
        assert end_of(arena.path) == bytes([7]) * md.SIZE
    assert "the master that had more RAM" in arena.restore()


def test_master_that_we_may_not_look_at_and_that_lengthened_the_arena_is_left_alone(
    arena: Arena, hidden: None
) -> None:
    with master(arena.path, 2 * WINDOW) as process:
        arena.windows(process.pid, lambda: False)
        assert "64 MiB instead of 16 MiB" in arena.problem


def test_metadata_is_written_again_under_a_master_whose_memory_table_fits(
    arena: Arena, hidden: None
) -> None:
    with master(arena.path, arena.ram) as process:
        arena.windows(process.pid, lambda: False).place(region(arena.ram), arena.file)
        overwrite_metadata(arena.path)
        assert "another process wrote over the end" in arena.restore()


def test_memory_table_of_one_master_says_nothing_of_the_next_one(
    arena: Arena, hidden: None
) -> None:
    with master(arena.path, arena.ram) as process:
        arena.windows(process.pid, lambda: False).place(region(arena.ram), arena.file)
    with master(arena.path, WINDOW) as process:
        arena.windows(process.pid, lambda: False)
        process.write_all()
        assert arena.restore() == ""
        arena.metadata.format()
        assert end_of(arena.path) == bytes([7]) * md.SIZE


def test_metadata_is_written_again_under_a_master_whose_ram_fits(arena: Arena) -> None:
    with master(arena.path, arena.ram) as process:
        arena.windows(process.pid, lambda: False).place(region(arena.ram), arena.file)
        overwrite_metadata(arena.path)
        assert "another process wrote over the end" in arena.restore()


def test_arena_in_which_a_master_had_too_much_ram_is_not_kept(
    config: DeviceConfig,
) -> None:
    """Its metadata is destroyed, so no daemon could use it again."""
    arena = Arena(config)
    with master(arena.path, WINDOW) as process:
        arena.windows(process.pid, lambda: False)
        arena.close()
    assert not config.arena.exists()


# Another process has removed its name.


def test_arena_that_was_moved_away_gets_its_name_back(arena: Arena) -> None:
    moved = arena.path.with_name("moved")
    arena.path.rename(moved)
    assert arena.new_problems() == []
    assert arena.path.samefile(moved)


@pytest.mark.parametrize("replaced", [False, True])
def test_arena_that_was_removed_is_reported_once_while_a_master_lives(
    arena: Arena, *, replaced: bool
) -> None:
    with master(arena.path, arena.ram) as process:
        arena.windows(process.pid, lambda: False)
        arena.path.unlink()
        if replaced:
            arena.path.write_bytes(b"another program's")
        (problem,) = arena.new_problems()
        verb = "replaced" if replaced else "removed"
        assert f"another process has {verb} the arena {arena.path}" in problem
        assert arena.new_problems() == []
        assert arena.describe()["problem"] == problem
    with pytest.raises(HostError, match=f"has {verb} the arena .* no master has it"):
        arena.new_problems()
    assert arena.path.exists() == replaced


def test_arena_that_we_may_not_look_at_for_a_while_is_not_lost(
    arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", refuse)
        assert arena.new_problems() == []
    assert arena.new_problems() == []


def test_arena_whose_directory_was_removed_fails_the_device_too(
    arena: Arena, shm: Path, tmp_path: Path
) -> None:
    shm.rename(shm.with_suffix(".moved"))
    shm.touch()
    try:
        with pytest.raises(HostError, match="no master has it"):
            arena.new_problems()
    finally:
        shm.unlink()
        shm.with_suffix(".moved").rename(shm)


def test_arena_that_was_removed_while_no_master_has_it_fails_the_device(
    arena: Arena,
) -> None:
    arena.path.unlink()
    with pytest.raises(HostError, match="no master has it"):
        arena.new_problems()
