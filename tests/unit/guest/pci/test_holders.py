# SPDX-License-Identifier: Apache-2.0
"""A window is taken back from processes that were given its file."""

import errno
import mmap
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fakes.sysfs import BAR2, FakeSystem
from tests.unit.guest.pci.plugged import device
from vhostpci_guest.errors import Unusable
from vhostpci_guest.interfaces import WindowFile
from vhostpci_guest.pci import bindings, holders
from vhostpci_guest.pci.kernel import System
from vhostpci_guest.pci.sysfs_device import PciDevice

GRACE = 0.1


@pytest.fixture(autouse=True)
def _grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "GRACE", GRACE)


@pytest.fixture
def here(system: FakeSystem) -> PciDevice:
    return device(system)


@pytest.fixture
def file(here: PciDevice) -> Iterator[WindowFile]:
    """The file of a window, which this process has mapped."""
    fd = os.open(here.path / "resource2", os.O_RDWR)
    file = WindowFile(fd)
    with mmap.mmap(fd, BAR2):
        yield file
    os.close(fd)


def show(system: FakeSystem, file: WindowFile, pid: int, name: str) -> None:
    """Show in /proc that a process has a file mapped."""
    status = os.fstat(file.fd)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    (system.proc / f"{pid}").mkdir()
    (system.proc / f"{pid}/comm").write_text(f"{name}\n")
    (system.proc / f"{pid}/maps").write_text(
        f"7f0000000000-7f0000100000 rw-s 0 {device} {status.st_ino} /resource2\n"
    )


def no_mapping(file: WindowFile) -> Callable[[], None]:
    """A claim after which the kernel maps the file no more."""

    def claim() -> None:
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, file.fd)
        os.close(null)

    return claim


def test_process_that_has_a_file_mapped_is_found_by_the_kernels_list() -> None:
    us, name = os.getpid(), Path("/proc/self/comm").read_text().strip()
    fd = os.memfd_create("window")
    os.ftruncate(fd, mmap.PAGESIZE)
    with mmap.mmap(fd, mmap.PAGESIZE):
        assert System().mapped_by(fd, [us, 1 << 30]) == [f"{name} ({us})"]
        assert System().mapped_by(fd, []) == []
        assert f"{name} ({us})" in System().mapped_by(fd, None)
    assert System().mapped_by(fd, [us]) == []
    os.close(fd)


def test_file_of_another_file_system_is_another_file(system: FakeSystem) -> None:
    """Two file systems may give two files one number."""
    fd = os.memfd_create("window")
    number = os.fstat(fd).st_ino
    (system.proc / "77").mkdir()
    (system.proc / "77/comm").write_text("testpmd\n")
    (system.proc / "77/maps").write_text(f"0-1 rw-s 0 fe:fe {number} /another\n")
    assert system.mapped_by(fd, [77]) == []
    os.close(fd)


def test_window_that_no_process_was_given_is_claimed_at_once(
    here: PciDevice,
    file: WindowFile,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    claims: list[str] = []
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    holders.take_back(here, file, lambda: claims.append("BAR 2"))
    assert pauses == []
    assert claims == ["BAR 2"]
    assert caplog.text == ""


def test_process_that_unmaps_the_window_in_time_is_waited_for(
    system: FakeSystem,
    here: PciDevice,
    file: WindowFile,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = [["testpmd (77)"], ["testpmd (77)"], []]
    asked: list[set[int]] = []

    def mapped_by(fd: int, processes: set[int]) -> list[str]:
        asked.append(processes)
        return answers.pop(0)

    monkeypatch.setattr(system, "mapped_by", mapped_by)
    file.holders.extend([77, 77])
    holders.take_back(here, file, lambda: asked.append(set()))
    assert asked == [{77}, {77}, {77}, set()], "the claim comes last"
    assert caplog.text == ""


def test_window_is_taken_from_a_process_that_keeps_it(
    system: FakeSystem,
    here: PciDevice,
    file: WindowFile,
    caplog: pytest.LogCaptureFixture,
) -> None:
    show(system, file, 77, "testpmd")
    file.holders.append(77)
    holders.take_back(here, file, no_mapping(file))
    assert "testpmd (77) had not unmapped the window" in caplog.text
    assert "taken away" in caplog.text


@pytest.mark.parametrize("claim", [None, lambda: None], ids=["no claim", "no effect"])
def test_window_that_cannot_be_taken_away_is_told(
    system: FakeSystem,
    here: PciDevice,
    file: WindowFile,
    caplog: pytest.LogCaptureFixture,
    claim: Callable[[], None] | None,
) -> None:
    show(system, file, 77, "testpmd")
    file.holders.append(77)
    holders.take_back(here, file, claim)
    assert "testpmd (77) has not unmapped the window" in caplog.text
    assert "can't be taken away" in caplog.text


@pytest.mark.parametrize(
    "error", [OSError(errno.EINVAL, "Invalid argument"), Unusable("no")]
)
def test_failed_claim_ends_no_agent(
    here: PciDevice,
    file: WindowFile,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def claim() -> None:
        raise error

    holders.take_back(here, file, claim)
    assert "its window can't be claimed" in caplog.text


def test_window_is_claimed_although_the_helper_has_ended(
    system: FakeSystem,
    here: PciDevice,
    file: WindowFile,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def mapped_by(fd: int, processes: set[int]) -> list[str]:
        raise Unusable("the helper has ended")

    claims: list[str] = []
    monkeypatch.setattr(system, "mapped_by", mapped_by)
    file.holders.append(77)
    holders.take_back(here, file, lambda: claims.append("BAR 2"))
    assert claims == ["BAR 2"]
    assert "can't be found out: the helper has ended" in caplog.text


@pytest.mark.parametrize("way", ["uio", "sysfs"])
def test_binding_tells_of_a_process_that_keeps_its_window(
    system: FakeSystem, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    bound = bindings.bind(device(system), way)
    file = bound.window.file
    assert file is not None
    show(system, file, 77, "testpmd")
    file.holders.append(77)
    bound.close()
    assert "testpmd (77) has not unmapped the window" in caplog.text


@pytest.mark.parametrize("way", ["uio", "sysfs"])
def test_binding_tells_of_a_process_that_has_its_window_from_another_agent(
    system: FakeSystem, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    here = device(system)
    fd = os.open(here.path / "resource2", os.O_RDWR)
    show(system, WindowFile(fd), 77, "testpmd")
    os.close(fd)
    bindings.bind(here, way).close()
    assert "testpmd (77) has the window mapped, from an agent" in caplog.text
