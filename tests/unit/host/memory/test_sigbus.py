# SPDX-License-Identifier: Apache-2.0
"""A mapping whose file is cut: it reads as zeros until it is mapped again.

Each test runs with the guards in C, and with those in Python, which a machine without a
compiler has.
"""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from tests.waiting import TIMEOUT
from vhostpci_host.fds import Fd
from vhostpci_host.memory.python_guard import PythonGuards
from vhostpci_host.memory.sigbus import GuardedMapping, Guards, installed_guards

PAGE = 4096
SIZE = 4 * PAGE


@pytest.fixture
def file() -> Iterator[Fd]:
    with Fd(os.memfd_create("cut")) as file:
        os.pwrite(file.fileno(), b"x" * SIZE, 0)
        yield file


PYTHON_GUARDS = PythonGuards()


@pytest.fixture(params=["C", "Python"])
def guards(request: pytest.FixtureRequest) -> Guards:
    if request.param == "Python":
        return PYTHON_GUARDS
    found = installed_guards()
    assert not isinstance(found, PythonGuards), "run tools/build_ring.py"
    return found


@pytest.fixture
def shared(file: Fd, guards: Guards) -> Iterator[GuardedMapping]:
    """A mapping of all but the first page of the file."""
    with closing(
        GuardedMapping(file, offset=PAGE, length=SIZE - PAGE, guards=guards)
    ) as shared:
        yield shared


def cut(file: Fd, size: int = 0) -> None:
    os.ftruncate(file.fileno(), size)


def test_mapping_shows_the_file_while_the_file_is_whole(
    file: Fd, shared: GuardedMapping
) -> None:
    with shared.view() as view:
        view[0] = ord("y")
        assert os.pread(file.fileno(), 2, PAGE) == b"yx"
    assert not shared.lost


def test_pages_that_were_cut_read_as_zeros_and_can_be_written(
    file: Fd, shared: GuardedMapping
) -> None:
    with shared.view() as view, view.cast("Q") as words:
        cut(file)
        assert words[3] == 0
        assert shared.lost
        words[3] = 7
        view[100:200] = b"z" * 100
        assert (words[3], bytes(view[99:101])) == (7, b"\0z")


@pytest.mark.parametrize("size", [0, 1, PAGE, PAGE + 1, SIZE - PAGE])
def test_renewed_mapping_shows_the_file_to_the_same_view(
    file: Fd, shared: GuardedMapping, size: int
) -> None:
    with shared.view() as view:
        cut(file, size)
        view[-1] = 1
        os.ftruncate(file.fileno(), SIZE)
        assert os.pread(file.fileno(), 1, SIZE - 1) == b"\0"
        shared.map_again()
        assert not shared.lost
        view[-1] = 2
        assert os.pread(file.fileno(), 1, SIZE - 1) == b"\2"


def test_other_mappings_are_left_alone(
    file: Fd, shared: GuardedMapping, guards: Guards
) -> None:
    with Fd(os.memfd_create("whole")) as other:
        os.ftruncate(other.fileno(), PAGE)
        with (
            closing(
                GuardedMapping(other, offset=0, length=PAGE, guards=guards)
            ) as whole,
            shared.view() as view,
        ):
            cut(file)
            assert view[0] == 0
            assert (shared.lost, whole.lost) == (True, False)


def test_file_may_be_cut_during_any_use_of_the_mapping(
    file: Fd, shared: GuardedMapping
) -> None:
    end = threading.Event()

    def cut_and_grow() -> None:
        while not end.is_set():
            cut(file)
            os.ftruncate(file.fileno(), SIZE)

    with running(cut_and_grow, end):
        lost = 0
        with shared.view() as view, view.cast("Q") as words:
            start = time.monotonic()
            # Longer than a second where the other thread has had too little time.
            while (passed := time.monotonic() - start) < 1 or (
                lost <= 10 and passed < TIMEOUT
            ):
                view[: 2 * PAGE] = bytes(2 * PAGE)
                words[5] = (words[6] + 1) % 2**64
                assert len(bytes(view)) == SIZE - PAGE
                lost += shared.lost
                if shared.lost:
                    with suppress(OSError):
                        shared.map_again()
    assert lost > 10


@contextmanager
def running(target: Callable[[], None], end: threading.Event) -> Iterator[None]:
    """Run a thread as long as the block."""
    thread = threading.Thread(target=target)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def test_mapping_that_cannot_be_mapped_again_stays_lost(
    file: Fd, shared: GuardedMapping
) -> None:
    with shared.view() as view:
        cut(file)
        assert view[0] == 0
        file.close()
        with pytest.raises((OSError, ValueError)):
            shared.map_again()
        assert shared.lost
        view[0] = 1


def test_mapping_that_its_owner_replaced_shows_the_file_once_it_is_mapped_again(
    file: Fd, shared: GuardedMapping
) -> None:
    with shared.view() as view:
        assert shared.replace_with_zeros()
        assert (shared.lost, view[0]) == (True, 0)
        shared.map_again()
        assert (shared.lost, view[0]) == (False, ord("x"))


def test_file_that_is_cut_twice_is_lost_twice(file: Fd, shared: GuardedMapping) -> None:
    with shared.view() as view:
        for _ in range(2):
            cut(file)
            assert view[0] == 0
            assert shared.lost
            os.ftruncate(file.fileno(), SIZE)
            shared.map_again()
            assert not shared.lost


def test_guards_are_in_python_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "vhostpci_shared._memory", None)
    assert isinstance(installed_guards(), PythonGuards)


def test_more_than_4096_guards_are_refused(file: Fd) -> None:
    class Full(PythonGuards):
        def guard_open(self, address: int, size: int, fd: int) -> int:
            return -errno.ENOSPC

    with pytest.raises(OSError, match="it can have no more"):
        GuardedMapping(file, offset=0, length=PAGE, guards=Full())


def test_fault_in_another_thread_is_survived(file: Fd, shared: GuardedMapping) -> None:
    found = []

    def look() -> None:
        with shared.view() as view:
            found.append(view[0])

    cut(file)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [0]


STRAY = """
import mmap, os, sys
if sys.argv[1] == "Python":
    sys.modules["vhostpci_shared._memory"] = None  # an import of it fails
from vhostpci_host.fds import Fd
from vhostpci_host.memory.sigbus import GuardedMapping
files = [Fd(os.memfd_create("cut")) for _ in range(2)]
for file in files:
    os.ftruncate(file.fileno(), 8192)
ours = GuardedMapping(files[0], offset=0, length=8192)
stray = mmap.mmap(files[1].fileno(), 8192)
for file in files:
    os.ftruncate(file.fileno(), 0)
assert ours.view()[0] == 0
print("alive", flush=True)
stray[0]
print("still alive")
"""


@pytest.mark.parametrize("kind", ["C", "Python"])
def test_fault_outside_our_mappings_ends_the_process_by_sigbus(kind: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRAY, kind], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "alive\n"), done.stderr
