# SPDX-License-Identifier: Apache-2.0
"""One look at a directory tells whether a name in it may have changed."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.loop import ManualLoop
from vhostpci_host.daemon.directories import (
    ANYWAY,
    STEP_NS,
    Directories,
    Directory,
    NameWatch,
    Stamp,
    stamp,
)

LONG_AGO = Stamp(device=1, inode=2, changed_ns=1)
SECOND_NS = 10**9


class Seen:
    """A directory that tells what the test says, at a time that the test says."""

    def __init__(self) -> None:
        self.loop = ManualLoop()
        self.stamp: Stamp | None = LONG_AGO
        self.clock = 10**18
        self.reads = 0
        self.directory = Directory(self._read, self.loop.time, lambda: self.clock)
        self.changed()

    def _read(self) -> Stamp | None:
        self.reads += 1
        return self.stamp

    def change(self) -> None:
        """Change a name now."""
        self.stamp = replace(LONG_AGO, changed_ns=self.clock)

    def changed(self, seconds: float = 1.0) -> bool:
        """Let time pass, look, and return whether that look says "changed"."""
        before = self.directory.changes()
        self.loop.advance(seconds)
        self.clock += int(seconds * SECOND_NS)
        return self.directory.changes() != before


@pytest.fixture
def seen() -> Seen:
    return Seen()


def test_nothing_has_changed_while_the_time_stays(seen: Seen) -> None:
    assert not any(seen.changed() for _ in range(ANYWAY // 2))


def test_change_is_noticed(seen: Seen) -> None:
    seen.change()
    assert seen.changed()


def test_other_directory_at_the_path_is_noticed(seen: Seen) -> None:
    seen.stamp = replace(LONG_AGO, inode=3)
    assert seen.changed()


def test_directory_that_cannot_be_seen_may_have_changed_with_each_look(
    seen: Seen,
) -> None:
    seen.stamp = None
    assert seen.changed()
    assert seen.changed()


@pytest.mark.parametrize("pause", [0.25, 1.0, 3600.0])
def test_second_change_at_the_same_time_as_the_first_is_noticed(
    seen: Seen, pause: float
) -> None:
    """The look lies between the two, and the clock has not stepped."""
    seen.change()
    seen.clock += STEP_NS // 2
    assert seen.changed(0.25)
    # Now the second change, which gets the same time: the stamp stays as it is.
    assert seen.changed(pause)


def test_change_of_some_time_ago_is_noticed_once(seen: Seen) -> None:
    seen.change()
    seen.clock += STEP_NS
    assert seen.changed()
    assert not seen.changed()


def test_directory_counts_as_changed_from_time_to_time(seen: Seen) -> None:
    """For a mount over a file, which changes nothing in the directory."""
    assert sum(seen.changed() for _ in range(10 * ANYWAY)) == 10


def test_devices_that_look_together_share_one_look(seen: Seen) -> None:
    before = seen.reads
    seen.change()
    seen.loop.advance(1.0)
    first = seen.directory.changes()
    assert {seen.directory.changes() for _ in range(200)} == {first}
    assert seen.reads == before + 1


def replace_directory(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.mkdir()


CHANGES: dict[str, Callable[[Path], object]] = {
    "made": lambda path: (path / "new").touch(),
    "made by link": lambda path: (path / "new").hardlink_to(path / "file"),
    "removed": lambda path: (path / "file").unlink(),
    "renamed": lambda path: (path / "file").rename(path / "new"),
    "replaced": lambda path: (path / "other").rename(path / "file"),
    "moved in": lambda path: (path.with_name("outside")).rename(path / "new"),
    "directory replaced": replace_directory,
    "directory removed": lambda path: path.rename(path.with_name("elsewhere")),
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_way_to_change_a_name_is_noticed(tmp_path: Path, what: str) -> None:
    path = tmp_path / "directory"
    path.mkdir()
    for file in (path / "file", path / "other", tmp_path / "outside"):
        file.touch()
    before = stamp(path)
    wait_for_the_clock(tmp_path, path)
    CHANGES[what](path)
    assert stamp(path) != before


def wait_for_the_clock(tmp_path: Path, path: Path) -> None:
    """Wait until a change gets another time than the last change of `path`."""
    last = path.stat().st_ctime_ns
    probe = tmp_path / "probe"
    while True:
        probe.touch()
        if probe.stat().st_ctime_ns > last:
            return


def test_watch_says_changed_at_first_and_for_a_change_in_any_directory() -> None:
    one, other = Seen(), Seen()
    watch = NameWatch(one.directory, other.directory)
    assert [watch.changed(), watch.changed()] == [True, False]
    for directory in (one, other):
        directory.change()
        directory.loop.advance(1.0)
        assert watch.changed()
        assert not watch.changed()


def test_directory_is_shared_while_a_device_has_it(tmp_path: Path) -> None:
    directories = Directories(ManualLoop().time)
    first = directories.at(tmp_path)
    assert directories.at(tmp_path) is first
    del first
    assert not directories._known


def test_clock_that_jumps_hides_no_change(seen: Seen) -> None:
    """After a jump back a directory seems to have changed later than now."""
    for seconds in (-3600, 3600):
        seen.change()
        seen.clock += seconds * SECOND_NS
        assert seen.changed()
        seen.change()
        assert seen.changed()
