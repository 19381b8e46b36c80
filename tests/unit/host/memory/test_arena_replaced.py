# SPDX-License-Identifier: Apache-2.0
"""Another process puts a file into the arena's place while the daemon opens it."""

import fcntl
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.unit.host.memory.left_behind import leave_behind
from vhostpci_host.config.device import DeviceConfig
from vhostpci_host.errors import HostError
from vhostpci_host.memory.arena import Arena
from vhostpci_host.memory.arena_file import remove_left_behind


def after_the_look(
    monkeypatch: pytest.MonkeyPatch, path: Path, act: Callable[[], None]
) -> None:
    """Act as soon as the daemon has looked at what lies at `path`, and before it opens.

    As another process may, which knows when to.
    """
    real = Path.lstat

    def lstat(looked_at: Path) -> os.stat_result:
        info = real(looked_at)
        if looked_at == path:
            monkeypatch.setattr(Path, "lstat", real)
            act()
        return info

    monkeypatch.setattr(Path, "lstat", lstat)


def before_the_lock(
    monkeypatch: pytest.MonkeyPatch, path: Path, *, times: int
) -> list[int]:
    """Move the arena away before the daemon locks it, and put another one there.

    Return a list that gets the inode number of each file that was there.
    """
    real, replaced = fcntl.flock, list[int]()

    def flock(fd: int, operation: int) -> None:
        if len(replaced) < times:
            replaced.append(os.fstat(fd).st_ino)
            path.rename(path.with_name(f"moved-{len(replaced)}"))
            leave_behind(path, ram=b"newer!")
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    return replaced


def test_link_that_comes_into_the_arenas_place_is_not_opened(
    config: DeviceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = config.memory_dir / "victim"
    for path in (config.arena, victim):
        leave_behind(path)

    def act() -> None:
        config.arena.unlink()
        config.arena.symlink_to(victim)

    after_the_look(monkeypatch, config.arena, act)
    with pytest.raises(HostError, match=r"cannot open arena .*symbolic links"):
        Arena(config)


def test_fifo_that_comes_into_the_arenas_place_is_refused(
    config: DeviceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_behind(config.arena)

    def act() -> None:
        config.arena.unlink()
        os.mkfifo(config.arena, 0o600)

    after_the_look(monkeypatch, config.arena, act)
    with pytest.raises(HostError, match="is no regular file"):
        Arena(config)


def test_arena_that_is_replaced_before_it_is_locked_is_opened_again(
    config: DeviceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else two daemons would have an arena of one name."""
    leave_behind(config.arena)
    before_the_lock(monkeypatch, config.arena, times=1)
    with closing(Arena(config)) as arena:
        assert arena.read(0, 6) == b"newer!"


def test_arena_that_is_replaced_all_the_time_is_given_up(
    config: DeviceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_behind(config.arena)
    tries = before_the_lock(monkeypatch, config.arena, times=100)
    with pytest.raises(HostError, match="keeps being replaced by another process"):
        Arena(config)
    assert len(tries) < 100


def test_file_that_replaced_an_arena_that_was_left_behind_is_not_removed(
    config: DeviceConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_behind(config.arena)
    before_the_lock(monkeypatch, config.arena, times=1)
    remove_left_behind(config.arena, config.access)
    assert config.arena.read_bytes()[:6] == b"newer!"
