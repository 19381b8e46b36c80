# SPDX-License-Identifier: Apache-2.0
"""The arena's file: how it is made, locked, used again and removed."""

import errno
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
from vhostpci_shared import metadata as md
from vhostpci_shared.vhost_user import MemRegion
from vhostpci_shared.wire import ProtocolError


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


def test_arena_that_cannot_be_served_is_not_left_behind(
    config: DeviceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was there before stays: a master may have it as its memory."""
    arena = Arena(config)
    arena.metadata.format()
    arena.windows(0, lambda: False)
    arena.close()
    monkeypatch.setattr(arena_module, "filesystem", lambda _: "hugetlbfs")
    page = os.statvfs(config.memory_dir).f_bsize
    huge = type("Huge", (), {"f_bsize": 3 * page})
    monkeypatch.setattr(os, "statvfs", lambda _: huge)
    for left_behind in (True, False):
        with pytest.raises(HostError, match="no multiple of the huge page"):
            Arena(config)
        assert config.arena.exists() == left_behind
        config.arena.unlink(missing_ok=True)


def test_arena_that_cannot_be_mapped_is_named_and_not_left_behind(
    config: DeviceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("mmap.mmap", refuse)
    with pytest.raises(HostError, match=f"{config.arena}: Cannot allocate memory"):
        Arena(config)
    assert not config.arena.exists()


def test_arena_that_a_master_has_had_stays_for_the_next_daemon(
    config: DeviceConfig,
) -> None:
    """The master runs on, and its memory is this file."""
    arena = Arena(config)
    arena.metadata.format()
    inode = config.arena.stat().st_ino
    arena.windows(0, lambda: False)
    for _ in range(2):  # no front-end connects to the second daemon
        arena.close()
        assert config.arena.stat().st_ino == inode
        arena = Arena(config)
        arena.metadata.format()
    arena.discard()
    arena.close()
    assert not config.arena.exists()


def test_slave_that_still_has_the_arena_does_not_keep_it_locked(
    config: DeviceConfig,
) -> None:
    """A slave's QEMU outlives the daemon, with the descriptor that it was given."""
    arena = Arena(config)
    arena.metadata.format()
    arena.windows(0, lambda: False)
    with opened(arena):
        arena.close()
        Arena(config).close()


def test_arena_has_the_mode_and_the_group_of_the_device(config: DeviceConfig) -> None:
    if os.geteuid():
        pytest.skip("to give a file to another group needs root")
    with closing(Arena(replace(config, access=0o660, group=1234))):
        info = config.arena.stat()
    assert (info.st_mode & 0o777, info.st_gid) == (0o660, 1234)


def test_new_arena_is_open_to_no_other_user_before_it_has_its_mode(
    config: DeviceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, modes = os.fchmod, list[int]()

    def fchmod(fd: int, mode: int) -> None:
        modes.append(os.fstat(fd).st_mode & 0o777)
        real(fd, mode)

    monkeypatch.setattr(os, "fchmod", fchmod)
    before = os.umask(0)
    try:
        Arena(config).close()
    finally:
        os.umask(before)
    assert modes == [0o600]


def test_arena_is_discarded_if_the_device_is_configured_so(
    config: DeviceConfig,
) -> None:
    arena = Arena(replace(config, discard_memory=True))
    arena.metadata.format()
    arena.windows(0, lambda: False)
    arena.close()
    assert not config.arena.exists()


def test_arena_that_cannot_be_removed_is_closed_all_the_same(
    config: DeviceConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its directory may have become read-only."""

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    arena = Arena(config)
    arena.metadata.format()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        arena.close()
    assert f"cannot remove {config.arena}: Read-only file system" in caplog.text
    Arena(config).close()  # it is not locked any more


def test_file_that_has_replaced_the_arena_is_not_removed(config: DeviceConfig) -> None:
    arena = Arena(config)
    config.arena.unlink()
    config.arena.write_bytes(b"another program's")
    arena.close()
    assert config.arena.exists()


def test_file_system_on_a_disk_is_logged(
    config: DeviceConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(arena_module, "filesystem", lambda _: "ext4")
    Arena(config).close()
    assert "is on ext4: use a tmpfs or hugetlbfs directory" in caplog.text


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


def test_refusal_of_an_earlier_arena_says_to_restart_the_master(
    config: DeviceConfig,
) -> None:
    """The master has the right argument, and another file: only a restart helps."""
    with closing(Arena(config)), Fd(os.open(config.arena, os.O_RDWR)) as old:
        config.arena.unlink()
        with closing(Arena(config)) as arena, pytest.raises(ProtocolError) as refusal:
            ArenaWindows(arena, 0).place(region(MIB), old)
    assert f"is the file that was {config.arena} before" in str(refusal.value)
    assert "restart the master" in str(refusal.value)
    assert "mem-path" not in str(refusal.value)


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
