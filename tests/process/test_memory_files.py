# SPDX-License-Identifier: Apache-2.0
"""The file of the master's memory: no room for it, removed, or prepared by another.

vhostpci-host ── MEMORY-DIR/net0 (a small tmpfs of this test)
      │               │
   agent           master
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import tmpfs
from tests.process.lab import MEMORY, Lab
from tests.process.master import Master, Ram
from tests.process.program import Program
from tests.waiting import wait_for

pytestmark = pytest.mark.process


@pytest.fixture
def room(lab: Lab) -> Iterator[Path]:
    """A memory directory with room for the master's memory, and some more."""
    with tmpfs.mounted(lab.memory_dir, (MEMORY >> 20) + 4) as place:
        yield place


def start(lab: Lab) -> tuple[Program, Master]:
    """Start all three, with a master that has used all of its memory."""
    daemon = lab.start_daemon()
    lab.start_agent()
    memory = Ram.of_arena(lab.arena, MEMORY)
    memory.write(0, bytes([1]) * MEMORY)
    master = lab.start_master(memory)
    master.load()
    lab.wait_carrier("UP")
    return daemon, master


def works(lab: Lab) -> bool:
    """Whether packets cross; the first may be lost on the way back up."""
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_master(1) == 1, "a first ping comes back")
    return lab.ping_from_master() == 5


def ended(lab: Lab, *options: str) -> str:
    """Start a daemon that has to end with status 1; return what it says."""
    daemon = lab.start_server(lab.daemon_argv(*options))
    assert daemon.wait() == 1
    return daemon.log


def test_daemon_says_that_there_is_no_space_and_ends(lab: Lab, room: Path) -> None:
    filler = tmpfs.fill(room)
    assert f"no space left in {room}, for net0" in ended(lab)
    assert lab.files() == ["filler"]
    filler.unlink()
    lab.start_daemon()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_daemon_is_started_again_while_the_file_system_is_full(
    lab: Lab, room: Path, number: signal.Signals
) -> None:
    daemon, master = start(lab)
    tmpfs.fill(room)
    daemon.end(number)
    master.stop_card()
    lab.start_daemon()
    master.reconnect()
    master.load()
    assert works(lab)


def test_memory_is_taken_at_the_start_if_asked_for(lab: Lab, room: Path) -> None:
    lab.start_daemon("--prealloc")
    assert lab.arena.stat().st_blocks * 512 >= MEMORY


def test_memory_that_cannot_be_taken_at_the_start_ends_the_daemon(
    lab: Lab, room: Path
) -> None:
    (room / "filler").write_bytes(bytes(8 << 20))
    assert f"no space left in {room}, for net0" in ended(lab, "--prealloc")
    assert lab.files() == ["filler"]


def test_daemon_warns_if_its_devices_together_have_no_room(
    lab: Lab, room: Path
) -> None:
    daemon = lab.start_fleet("a")
    assert "MiB more" not in daemon.log
    done = lab.run_host("add", "b", "--memory", f"{MEMORY >> 20}M")
    assert done.returncode == 0
    daemon.wait_log(f"{room} has 35 MiB free, and the memory of a, b may take 63 MiB")


def test_removed_arena_is_told_while_a_master_has_it(lab: Lab) -> None:
    daemon, master = start(lab)
    lab.arena.unlink()
    daemon.wait_log(f"another process has removed the arena {lab.arena}")
    assert "has removed the arena" in lab.status()["memory"]["problem"]
    assert "problem  another process has removed" in lab.run_host("status").stdout
    assert works(lab)
    assert daemon.said("has removed the arena") == 1
    assert master.card is not None


def test_removed_arena_that_no_master_has_ends_its_only_device(lab: Lab) -> None:
    daemon = lab.start_daemon()
    lab.arena.unlink()
    assert daemon.wait() == 1
    assert "has removed the arena" in daemon.log
    assert "no master has it" in daemon.log
    assert "Traceback" not in daemon.log
    lab.start_daemon()


def test_master_is_told_that_its_arena_was_removed_by_an_earlier_daemon(
    lab: Lab,
) -> None:
    daemon, master = start(lab)
    daemon.end(signal.SIGKILL)
    master.stop_card()
    lab.arena.unlink()
    daemon = lab.start_daemon()
    master.reconnect()
    with pytest.raises(Exception, match="SET_MEM_TABLE"):
        master.load()
    daemon.wait_log(f"is the file that was {lab.arena} before")


def test_daemon_leaves_the_file_of_a_master_that_started_before_it(lab: Lab) -> None:
    lab.arena.touch(0o600)
    with lab.arena.open("r+b") as file:
        file.truncate(MEMORY)
        inode = lab.arena.stat().st_ino
        reader = lab.start_server(["tail", "-f", str(lab.arena)])
        wait_for(lambda: lab.arena.name in str(reader.open_files()), "tail has it open")
        said = ended(lab)
    assert "start the daemon first" in said
    assert f"pid {reader.process.pid} (tail)" in said
    assert lab.arena.stat().st_ino == inode


def test_discarded_memory_does_not_stay(lab: Lab) -> None:
    daemon = lab.start_daemon("--discard-memory")
    lab.start_master().load()
    assert daemon.end() == 0
    assert lab.files() == []
