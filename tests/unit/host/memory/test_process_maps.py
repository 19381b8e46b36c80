# SPDX-License-Identifier: Apache-2.0
"""What /proc says of a process that maps a file, or has it open."""

import mmap
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fakes.windows import MIB
from vhostpci_host.memory.limited_read import LONGEST
from vhostpci_host.memory.process_maps import (
    is_alive,
    mapped_end,
    mapped_private,
    users_of,
)

LINE = 49
"""Bytes of the shortest line of /proc/PID/maps."""


@pytest.fixture
def memory(shm: Path) -> Path:
    path = shm / "memory"
    path.write_bytes(bytes(MIB))
    return path


def test_private_mapping_is_distinguished_from_a_shared_one(memory: Path) -> None:
    with memory.open("r+b") as file:
        info = os.fstat(file.fileno())
        assert not mapped_private(os.getpid(), info)
        with mmap.mmap(file.fileno(), MIB, flags=mmap.MAP_PRIVATE):
            assert mapped_private(os.getpid(), info)
            with mmap.mmap(file.fileno(), MIB, flags=mmap.MAP_SHARED):
                assert not mapped_private(os.getpid(), info)


def test_mapping_across_an_offset_is_found_with_its_end(memory: Path) -> None:
    with memory.open("r+b") as file:
        info = os.fstat(file.fileno())

        def end(offset: int) -> int | None:
            return mapped_end(os.getpid(), info, offset)

        assert end(4096) == 0
        with (
            mmap.mmap(file.fileno(), MIB // 2),
            mmap.mmap(file.fileno(), MIB // 4, offset=MIB // 2),
        ):
            assert end(4096) == MIB // 2
            assert end(MIB // 2) == 0
            assert end(MIB // 2 + 1) == MIB // 4 * 3
            assert end(MIB // 4 * 3) == 0


def test_file_of_another_file_system_with_the_same_number_is_another(
    memory: Path,
) -> None:
    with memory.open("r+b") as file, mmap.mmap(file.fileno(), MIB):
        mode, inode, device, *others = os.fstat(file.fileno())
        assert mapped_end(
            os.getpid(), os.stat_result((mode, inode, device, *others)), 1
        )
        other = os.stat_result((mode, inode, device + 1, *others))
        assert mapped_end(os.getpid(), other, 1) == 0


def test_nothing_is_known_of_a_process_that_we_may_not_look_at(memory: Path) -> None:
    assert not mapped_private(0, memory.stat())
    assert mapped_end(0, memory.stat(), 1) is None


def test_process_with_more_mappings_than_any_qemu_is_not_looked_at(
    memory: Path,
) -> None:
    """The kernel would print a line for each of them, while all devices wait."""
    with memory.open("r+b") as file, ExitStack() as stack:
        for _ in range(LONGEST // LINE // 2 + 1):
            # Two mappings side by side must differ, or the kernel makes them one.
            for access in (mmap.ACCESS_READ, mmap.ACCESS_WRITE):
                stack.enter_context(mmap.mmap(-1, mmap.PAGESIZE, access=access))
        assert mapped_end(os.getpid(), os.fstat(file.fileno()), 1) is None


def test_process_lives_until_it_has_ended() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1)
    assert is_alive(process.pid)
    process.communicate(b"\n")
    assert not is_alive(process.pid)
    assert not is_alive(0)


def test_process_that_we_may_not_signal_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, signal: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", refuse)
    assert is_alive(1)


def test_other_process_that_has_a_file_open_is_named(memory: Path) -> None:
    with memory.open("rb") as file:
        assert users_of(memory) == []
        process = subprocess.Popen(["sleep", "60"], stdin=file)
        assert users_of(memory) == [f"pid {process.pid} (sleep)"]
        process.kill()
        process.wait()
