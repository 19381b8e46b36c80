# SPDX-License-Identifier: Apache-2.0
"""What lies in the arena's place is used again, replaced, or refused and left alone."""

import errno
import os
import resource
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes import tmpfs
from tests.fakes.mapping_process import mapped_by_a_process
from tests.fakes.windows import MIB
from tests.unit.host.memory.left_behind import WINDOW, leave_behind
from vhostpci_host.config.device import DeviceConfig
from vhostpci_host.errors import HostError
from vhostpci_host.memory.arena import Arena
from vhostpci_host.memory.arena_file import remove_left_behind
from vhostpci_shared import metadata as md

OTHER = 1234
"""Neither root nor the user of the test."""


def assert_refused(config: DeviceConfig, match: str) -> None:
    """Check that the file is refused, and that nothing happens to it."""
    before = config.arena.stat()
    with pytest.raises(HostError, match=match):
        Arena(config)
    after = config.arena.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)


# What is used again.


def test_arena_of_a_killed_daemon_is_used_again(config: DeviceConfig) -> None:
    leave_behind(config.arena)
    inode = config.arena.stat().st_ino
    with (
        mapped_by_a_process(config.arena, "MAP_SHARED"),
        closing(Arena(config)) as arena,
    ):
        assert config.arena.stat().st_ino == inode
        assert arena.read(0, 6) == b"master"


def test_arena_of_a_killed_daemon_is_used_again_when_the_file_system_is_full(
    config: DeviceConfig, small: Path
) -> None:
    config = replace(config, memory_dir=small)
    leave_behind(config.arena)
    tmpfs.fill(small)
    with closing(Arena(config)) as arena:
        arena.metadata.format()
        assert arena.read(arena.size - md.SIZE, 8) == md.MAGIC


def test_file_of_a_daemon_that_was_killed_before_it_wrote_is_used(
    config: DeviceConfig,
) -> None:
    for size in (0, WINDOW, WINDOW // 2):
        config.arena.touch(0o600)
        os.truncate(config.arena, size)
        Arena(config).close()
        # It is as good as new: no master can have had it.
        assert not config.arena.exists()


# What is replaced.


@pytest.mark.parametrize("size", [WINDOW // 2, 2 * WINDOW])
def test_arena_of_another_size_is_replaced_if_no_program_has_it(
    config: DeviceConfig, size: int
) -> None:
    leave_behind(config.arena, size=size)
    with config.arena.open("rb") as old:
        inode = os.fstat(old.fileno()).st_ino
    with closing(Arena(config)):
        assert config.arena.stat().st_size == WINDOW
        assert config.arena.stat().st_ino != inode or size == WINDOW


def test_arena_that_a_masters_qemu_lengthened_is_replaced(config: DeviceConfig) -> None:
    leave_behind(config.arena)
    os.truncate(config.arena, 4 * WINDOW)
    with closing(Arena(config)) as arena:
        assert config.arena.stat().st_size == WINDOW
        assert arena.read(0, 6) == bytes(6)


# What is left to a confined device.


def confined(config: DeviceConfig) -> tuple[DeviceConfig, int]:
    """Return a confined device's configuration, and the size of its arena."""
    config = replace(config, memory=1024 * MIB, confined=16 * MIB)
    return config, 64 * MIB


def say_shared(path: Path, shared: int) -> None:
    """Write into an arena's metadata how much is shared."""
    at = path.stat().st_size - md.SIZE + md.CONFINED
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), bytes(md.Confined(shared=shared)), at)


def test_arena_of_a_killed_daemon_is_used_again_for_a_confined_device(
    config: DeviceConfig,
) -> None:
    config, size = confined(config)
    leave_behind(config.arena, size=size)
    say_shared(config.arena, config.shared)
    with closing(Arena(config)) as arena:
        assert arena.read(0, 6) == b"master"


@pytest.mark.parametrize("shared", [0, 16 * MIB])
def test_arena_that_was_not_that_confined_devices_is_replaced(
    config: DeviceConfig, shared: int
) -> None:
    """All of an ordinary master's memory is still in it, and the size is the same."""
    config, size = confined(config)
    leave_behind(config.arena, size=size)
    say_shared(config.arena, shared)
    with closing(Arena(config)) as arena:
        assert arena.read(0, 6) == bytes(6)


def test_arena_of_an_ordinary_master_that_runs_is_refused_for_a_confined_device(
    config: DeviceConfig,
) -> None:
    config, size = confined(config)
    leave_behind(config.arena, size=size)
    say_shared(config.arena, 0)
    with mapped_by_a_process(config.arena, "MAP_SHARED") as pid:
        assert_refused(config, rf"all memory of a master in it.*used by pid {pid} \(")


# What is refused.


def test_arena_of_another_size_that_a_vm_uses_is_refused(config: DeviceConfig) -> None:
    leave_behind(config.arena, size=2 * WINDOW)
    with mapped_by_a_process(config.arena, "MAP_SHARED") as pid:
        assert_refused(config, rf"has 64 MiB.* takes 32 MiB.*used by pid {pid} \(")


def test_file_of_a_master_that_started_before_the_daemon_is_refused(
    config: DeviceConfig,
) -> None:
    """Its QEMU makes the file that it is told to use, if there is none."""
    config.arena.touch(0o600)
    os.truncate(config.arena, config.memory)
    with mapped_by_a_process(config.arena, "MAP_SHARED") as pid:
        assert_refused(config, rf"start the daemon first.*used by pid {pid} \(")
        with config.arena.open("r+b") as file:
            file.write(b"firmware")
        assert_refused(config, rf"no vhostpci metadata \(it is used by pid {pid} \(")


@pytest.mark.parametrize("size", [4, WINDOW])
def test_file_that_is_no_arena_is_refused(config: DeviceConfig, size: int) -> None:
    config.arena.write_bytes(b"mine")
    os.truncate(config.arena, size)
    config.arena.chmod(0o600)
    assert_refused(config, "is no arena of ours, as it has no vhostpci metadata")
    assert config.arena.read_bytes()[:4] == b"mine"


def give_away(path: Path, uid: int = OTHER) -> None:
    if os.geteuid():
        pytest.skip("to give a file to another user needs root")
    os.chown(path, uid, -1)


def link_twice(path: Path) -> None:
    os.link(path, path.with_name("victim"))


@pytest.mark.parametrize("owner", [0, OTHER])
def test_arena_of_root_or_of_the_daemons_user_is_used(
    config: DeviceConfig, monkeypatch: pytest.MonkeyPatch, owner: int
) -> None:
    leave_behind(config.arena)
    give_away(config.arena, owner)
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    with closing(Arena(config)) as arena:
        assert arena.read(0, 6) == b"master"


prepared = pytest.mark.parametrize(
    ("prepare", "match"),
    [
        (give_away, f"belongs to uid {OTHER}, who would have the master's memory"),
        (link_twice, "has 2 names"),
        (lambda path: path.chmod(0o606), "mode 0606, which is wider than 0600"),
        (lambda path: path.chmod(0o660), r"mode 0660.*--socket-group that it had"),
    ],
)


@prepared
def test_arena_that_another_user_may_have_prepared_is_refused(
    config: DeviceConfig, prepare: Callable[[Path], None], match: str
) -> None:
    for size in (WINDOW, 2 * WINDOW):
        leave_behind(config.arena, size=size)
        prepare(config.arena)
        assert_refused(config, match)
        for path in config.memory_dir.iterdir():
            path.unlink()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660])
def test_arena_may_have_the_mode_that_the_device_has_or_a_narrower_one(
    config: DeviceConfig, mode: int
) -> None:
    leave_behind(config.arena)
    config.arena.chmod(mode)
    with closing(Arena(replace(config, access=0o660))):
        assert config.arena.stat().st_mode & 0o777 == 0o660


def test_link_in_the_arenas_place_is_not_followed(config: DeviceConfig) -> None:
    victim = config.memory_dir / "victim"
    leave_behind(victim)
    config.arena.symlink_to(victim)
    with pytest.raises(HostError, match="is no regular file"):
        Arena(config)
    assert victim.read_bytes()[:6] == b"master"


def test_directory_or_fifo_in_the_arenas_place_is_refused(config: DeviceConfig) -> None:
    config.arena.mkdir()
    with pytest.raises(HostError, match="is no regular file"):
        Arena(config)
    config.arena.rmdir()
    os.mkfifo(config.arena)
    with pytest.raises(HostError, match="is no regular file"):
        Arena(config)


def test_arena_in_use_by_another_daemon_is_refused(config: DeviceConfig) -> None:
    with closing(Arena(config)), pytest.raises(HostError, match="in use by another"):
        Arena(config)


# What a device that failed has left.


def test_arena_that_was_left_behind_is_removed(config: DeviceConfig) -> None:
    remove_left_behind(config.arena, config.access)
    leave_behind(config.arena)
    remove_left_behind(config.arena, config.access)
    assert not config.arena.exists()


def test_arena_that_another_daemon_has_is_not_removed(config: DeviceConfig) -> None:
    with closing(Arena(config)), pytest.raises(HostError, match="in use by another"):
        remove_left_behind(config.arena, config.access)


@prepared
def test_arena_that_another_user_may_have_prepared_is_not_removed(
    config: DeviceConfig, prepare: Callable[[Path], None], match: str
) -> None:
    leave_behind(config.arena)
    prepare(config.arena)
    with pytest.raises(HostError, match=match):
        remove_left_behind(config.arena, config.access)
    assert config.arena.exists()


def test_file_that_is_no_arena_is_not_removed(config: DeviceConfig) -> None:
    config.arena.touch(0o600)
    with pytest.raises(HostError, match="is no arena of ours, and stays"):
        remove_left_behind(config.arena, config.access)
    assert config.arena.exists()


# No space.


def test_full_file_system_is_named_and_nothing_is_left_there(
    config: DeviceConfig, small: Path
) -> None:
    tmpfs.fill(small)
    config = replace(config, memory_dir=small)
    with pytest.raises(HostError, match=f"no space left in {small}, for dev: remove"):
        Arena(config)
    assert not config.arena.exists()


def test_quota_that_is_used_up_is_a_lack_of_space(
    config: DeviceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(HostError, match="no space left in"):
        Arena(config)


def test_arena_that_cannot_have_its_size_is_not_left_behind(
    config: DeviceConfig,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (WINDOW - 1, hard))
    try:
        with pytest.raises(HostError, match="cannot make 32 MiB of"):
            Arena(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not config.arena.exists()


def test_file_system_with_no_inode_left_is_named(
    config: DeviceConfig, small: Path
) -> None:
    # The directory itself is the only one.
    subprocess.run(["mount", "-o", "remount,nr_inodes=1", small], check=True)
    with pytest.raises(HostError, match="no space left in"):
        Arena(replace(config, memory_dir=small))
