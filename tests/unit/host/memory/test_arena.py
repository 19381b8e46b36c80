# SPDX-License-Identifier: Apache-2.0
"""The arena's file: how it is made, locked, used again and removed."""

import mmap
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.frontend import region
from tests.fakes.windows import MIB
from vhostpci_host.config.device import DeviceConfig
from vhostpci_host.errors import HostError
from vhostpci_host.fds import Fd
from vhostpci_host.memory import arena as arena_module
from vhostpci_host.memory.arena import Arena, ArenaWindows
from vhostpci_host.memory.regions import mapped_private
from vhostpci_shared import metadata as md
from vhostpci_shared.vhost_user import MemRegion
from vhostpci_shared.wire import ProtocolError


@pytest.fixture
def config(tmp_path: Path) -> DeviceConfig:
    return DeviceConfig(
        name="dev", memory=16 * MIB, run_dir=tmp_path, memory_dir=tmp_path
    )


@contextmanager
def opened(arena: Arena) -> Iterator[Fd]:
    with Fd(os.dup(arena.file.fileno())) as fd:
        yield fd


def test_arena_is_a_power_of_two_with_room_for_the_metadata(
    config: DeviceConfig,
) -> None:
    with closing(Arena(config)) as arena:
        assert arena.size == 32 * MIB == config.arena.stat().st_size
        assert config.arena.stat().st_blocks * 512 < MIB
        assert config.arena.stat().st_mode & 0o777 == 0o600
        arena.metadata.format()
        end = arena.read(arena.size - md.SIZE, 8)
        assert end == md.MAGIC
    assert not config.arena.exists()


def test_arena_in_use_is_an_error(config: DeviceConfig) -> None:
    with closing(Arena(config)), pytest.raises(HostError, match="in use by another"):
        Arena(config)


def test_leftover_of_the_right_size_is_used_again(config: DeviceConfig) -> None:
    config.arena.write_bytes(b"master")
    os.truncate(config.arena, 32 * MIB)
    inode = config.arena.stat().st_ino
    with closing(Arena(config)) as arena:
        assert config.arena.stat().st_ino == inode
        assert arena.read(0, 6) == b"master"


def test_arena_that_cannot_be_served_is_not_left_behind(
    config: DeviceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was there before stays: a master may have it as its memory."""
    monkeypatch.setattr(arena_module, "filesystem", lambda _: "hugetlbfs")
    page = os.statvfs(config.memory_dir).f_bsize
    monkeypatch.setattr(
        os, "statvfs", lambda _: type("Huge", (), {"f_bsize": 3 * page})
    )
    for left_behind in (False, True):
        if left_behind:
            config.arena.write_bytes(b"")
            os.truncate(config.arena, 32 * MIB)
        with pytest.raises(HostError, match="no multiple of the huge page"):
            Arena(config)
        assert config.arena.exists() == left_behind


def test_leftover_of_another_size_is_replaced(config: DeviceConfig) -> None:
    config.arena.write_bytes(b"x" * 100)
    with config.arena.open("rb") as old, closing(Arena(config)):
        assert config.arena.stat().st_ino != os.fstat(old.fileno()).st_ino
        assert os.fstat(old.fileno()).st_size == 100


def test_arena_that_was_replaced_is_not_removed(config: DeviceConfig) -> None:
    arena = Arena(config)
    config.arena.unlink()
    config.arena.write_bytes(b"another process's")
    arena.close()
    assert config.arena.exists()


def test_link_in_the_arenas_place_is_not_followed(config: DeviceConfig) -> None:
    victim = config.memory_dir / "victim"
    victim.write_bytes(b"precious")
    config.arena.symlink_to(victim)
    with pytest.raises(HostError, match="cannot open arena"):
        Arena(config)
    assert victim.read_bytes() == b"precious"


def test_directory_in_the_arenas_place_is_an_error(config: DeviceConfig) -> None:
    config.arena.mkdir()
    with pytest.raises(HostError, match="cannot open arena"):
        Arena(config)


def test_file_system_on_a_disk_is_logged(
    config: DeviceConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(arena_module, "filesystem", lambda _: "ext4")
    Arena(config).close()
    assert "is on ext4: use a tmpfs or hugetlbfs directory" in caplog.text


def test_file_system_with_too_little_room_is_logged(
    config: DeviceConfig, caplog: pytest.LogCaptureFixture
) -> None:
    Arena(replace(config, memory=2**42)).close()
    assert "a VM that fills it is killed" in caplog.text


def test_region_of_the_arena_is_where_its_offset_says(config: DeviceConfig) -> None:
    with closing(Arena(config)) as arena, opened(arena) as fd:
        one = region(MIB, guest_addr=2**32, offset=3 * MIB)
        placed = ArenaWindows(arena, 0).place(one, fd)
        assert (placed.window, placed.offset) == (0, 3 * MIB)


def test_region_of_another_file_is_refused_with_the_argument(
    config: DeviceConfig,
) -> None:
    with (
        closing(Arena(config)) as arena,
        Fd(os.memfd_create("stray")) as stray,
        pytest.raises(ProtocolError) as refusal,
    ):
        ArenaWindows(arena, 0).place(region(MIB), stray)
    assert f"size=16M,mem-path={config.arena},share=on" in str(refusal.value)


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (0, 32 * MIB - md.SIZE + 1),
        (32 * MIB - md.SIZE, 1),
        (32 * MIB, MIB),
        (2**64 - 4096, 4096),
    ],
)
def test_region_that_reaches_into_the_metadata_is_refused(
    config: DeviceConfig, offset: int, size: int
) -> None:
    with (
        closing(Arena(config)) as arena,
        opened(arena) as fd,
        pytest.raises(ProtocolError, match="reaches into the metadata"),
    ):
        ArenaWindows(arena, 0).place(MemRegion(0, size, 0, offset), fd)


def test_region_may_end_where_the_metadata_starts(config: DeviceConfig) -> None:
    with closing(Arena(config)) as arena, opened(arena) as fd:
        ArenaWindows(arena, 0).place(MemRegion(0, 32 * MIB - md.SIZE, 0, 0), fd)


def test_private_mapping_is_distinguished_from_a_shared_one(
    config: DeviceConfig,
) -> None:
    config.arena.write_bytes(bytes(MIB))
    with config.arena.open("r+b") as file:
        info = os.fstat(file.fileno())
        assert not mapped_private(os.getpid(), info)
        with mmap.mmap(file.fileno(), MIB, flags=mmap.MAP_PRIVATE):
            assert mapped_private(os.getpid(), info)
            with mmap.mmap(file.fileno(), MIB, flags=mmap.MAP_SHARED):
                assert not mapped_private(os.getpid(), info)


def test_process_whose_mappings_cannot_be_read_is_trusted(config: DeviceConfig) -> None:
    config.arena.write_bytes(b"")
    assert not mapped_private(0, config.arena.stat())
