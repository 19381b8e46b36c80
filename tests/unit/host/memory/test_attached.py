# SPDX-License-Identifier: Apache-2.0
"""Attach mode: which pieces of which files of the master's become windows."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.fakes import tmpfs
from tests.fakes.frontend import region
from tests.fakes.windows import MIB
from vhostpci_host.config.device import DeviceConfig, Mode
from vhostpci_host.errors import HostError
from vhostpci_host.fds import Fd
from vhostpci_host.memory.attach import AttachedMemory, AttachedWindows, WindowIds
from vhostpci_shared import metadata as md
from vhostpci_shared.limits import shortage
from vhostpci_shared.vhost_user import MemRegion
from vhostpci_shared.wire import ProtocolError

F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AttachedMemory]:
    config = DeviceConfig(name="dev", mode=Mode.ATTACH, run_dir=tmp_path)
    with closing(AttachedMemory(config, WindowIds(md.FIRST_WINDOW))) as store:
        yield store


@pytest.fixture
def windows(store: AttachedMemory) -> AttachedWindows:
    return store.windows(0, lambda: True)


@pytest.fixture
def memory() -> Iterator[Fd]:
    """A memory file of 2 MiB."""
    with Fd(os.memfd_create("memory")) as file:
        os.ftruncate(file.fileno(), 2 * MIB)
        yield file


@contextmanager
def opened(path: Path, flags: int) -> Iterator[Fd]:
    with Fd(os.open(path, flags, 0o600)) as file:
        yield file


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE])
@pytest.mark.parametrize("what", ["mmap.mmap", "os.memfd_create"])
def test_metadata_that_the_machine_has_no_room_for_is_an_error_of_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, what: str
) -> None:
    """And no bug of ours: the device is not served, the other ones are."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(what, refuse)
    config = DeviceConfig(name="dev", mode=Mode.ATTACH, run_dir=tmp_path)
    with pytest.raises(HostError, match=os.strerror(number)) as raised:
        AttachedMemory(config, WindowIds())
    # More is said of a lack of descriptors.
    assert (shortage(raised.value) is None) == (number == errno.ENOMEM)


@pytest.mark.parametrize("offset", [0, MIB, 2 * MIB - 1])
def test_region_may_end_where_its_file_ends_and_no_byte_later(
    windows: AttachedWindows, memory: Fd, offset: int
) -> None:
    size = 2 * MIB - offset
    for number in range(2):  # the file is new at first, and then has a window
        longer = MemRegion(number, size + 1, 0, offset)
        with pytest.raises(ProtocolError, match="beyond the end of its file"):
            windows.place(longer, memory)
        placed = windows.place(MemRegion(0, size, 0, offset), memory)
        assert (placed.window, placed.offset) == (md.FIRST_WINDOW, offset)


def test_region_may_not_begin_behind_its_file(
    windows: AttachedWindows, memory: Fd
) -> None:
    for offset in (2 * MIB, 2 * MIB + 1, 2**64 - 4096):
        with pytest.raises(ProtocolError, match="beyond the end of its file"):
            windows.place(MemRegion(0, 4096, 0, offset), memory)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY])
def test_file_that_may_not_be_both_read_and_written_is_refused(
    windows: AttachedWindows, memory: Fd, flags: int
) -> None:
    path = Path(f"/proc/self/fd/{memory.fileno()}")
    with (
        opened(path, flags) as other,
        pytest.raises(ProtocolError, match="may not be written"),
    ):
        windows.place(region(MIB), other)


def test_file_that_has_grown_becomes_another_window(
    windows: AttachedWindows, memory: Fd
) -> None:
    """The slave has mapped the first window with its old size."""
    assert windows.place(region(MIB), memory).window == md.FIRST_WINDOW
    os.ftruncate(memory.fileno(), 4 * MIB)
    assert windows.place(region(MIB), memory).window == md.FIRST_WINDOW + 1


def test_files_of_two_file_systems_are_two_windows(
    windows: AttachedWindows, tmp_path: Path
) -> None:
    if os.geteuid():
        pytest.skip("to mount a tmpfs needs root")
    with (
        tmpfs.mounted(tmp_path / "one", 4) as one,
        tmpfs.mounted(tmp_path / "two", 4) as two,
        opened(one / "memory", os.O_RDWR | os.O_CREAT) as first,
        opened(two / "memory", os.O_RDWR | os.O_CREAT) as second,
    ):
        for file in (first, second):
            os.ftruncate(file.fileno(), 2 * MIB)
        infos = [os.fstat(file.fileno()) for file in (first, second)]
        assert infos[0].st_ino == infos[1].st_ino, "each is the first of its tmpfs"
        numbers = [windows.place(region(MIB), file).window for file in (first, second)]
    assert numbers == [md.FIRST_WINDOW, md.FIRST_WINDOW + 1]


def test_number_of_a_window_is_free_when_the_window_is_dropped(
    store: AttachedMemory, windows: AttachedWindows, memory: Fd
) -> None:
    count = md.LAST_WINDOW - md.FIRST_WINDOW + 1
    for _ in range(count + 1):
        number = windows.place(region(MIB), memory).window
        store.drop_windows_except(frozenset())
    assert number == md.FIRST_WINDOW


@pytest.mark.parametrize("seal", [fcntl.F_SEAL_WRITE, F_SEAL_FUTURE_WRITE])
def test_slave_cannot_keep_the_daemon_from_writing_the_metadata(
    store: AttachedMemory, seal: int
) -> None:
    with pytest.raises(PermissionError):
        fcntl.fcntl(store.file.fileno(), fcntl.F_ADD_SEALS, seal)
