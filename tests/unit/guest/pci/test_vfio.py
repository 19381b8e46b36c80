# SPDX-License-Identifier: Apache-2.0
"""VFIO's numbers and structures, as linux/vfio.h has them, and the window beside it."""

import errno
import os
import struct
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fakes.sysfs import BAR2, FakeSystem
from tests.unit.guest.pci.plugged import device
from vhostpci_guest.dataplane.mapping import Mapping
from vhostpci_guest.errors import Unusable
from vhostpci_guest.pci import hold, vfio


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("GET_API_VERSION", 0x3B64),
        ("CHECK_EXTENSION", 0x3B65),
        ("SET_IOMMU", 0x3B66),
        ("GROUP_GET_STATUS", 0x3B67),
        ("GROUP_SET_CONTAINER", 0x3B68),
        ("GROUP_GET_DEVICE_FD", 0x3B6A),
        ("DEVICE_GET_REGION_INFO", 0x3B6C),
        ("DEVICE_GET_IRQ_INFO", 0x3B6D),
        ("DEVICE_SET_IRQS", 0x3B6E),
    ],
)
def test_ioctl_number_is_that_of_the_kernel(name: str, number: int) -> None:
    assert getattr(vfio, name) == number


def test_all_vectors_are_set_in_one_call() -> None:
    words = struct.unpack("=8I", vfio.irq_set(vfio.MSIX_INDEX, [7, 8, 9]))
    argsz, flags, index, start, count, *fds = words
    assert argsz == 32
    assert flags == 4 | 32  # DATA_EVENTFD, ACTION_TRIGGER
    assert (index, start, count) == (2, 0, 3)  # MSI-X, all of them
    assert fds == [7, 8, 9]


def test_request_for_the_device_is_a_separate_interrupt() -> None:
    words = struct.unpack("=6I", vfio.irq_set(vfio.REQUEST_INDEX, [7]))
    assert words == (24, 4 | 32, 4, 0, 1, 7)  # VFIO_PCI_REQ_IRQ_INDEX


class Vfio:
    """Maps a BAR 2 that can be told from that of sysfs, as it is smaller."""

    def __init__(self) -> None:
        self.claimed = False

    def __call__(self, undo: ExitStack) -> Mapping:
        self.claimed = True
        fd = os.memfd_create("by vfio")
        try:
            os.ftruncate(fd, BAR2 // 2)
            mapping = Mapping(fd, BAR2 // 2)
        finally:
            os.close(fd)
        undo.callback(mapping.close)
        return mapping


@pytest.fixture
def by_vfio() -> Vfio:
    return Vfio()


def test_window_is_mapped_from_sysfs_and_claimed_by_vfio_at_the_end_only(
    system: FakeSystem, by_vfio: Vfio
) -> None:
    here = device(system)
    with ExitStack() as stack:
        window = vfio.map_window(here, stack, by_vfio)
        assert window.file is not None
        resource = (here.path / "resource2").stat()
        assert os.path.samestat(os.fstat(window.file.fd), resource)
        assert (window.mapping.view.nbytes, window.no_file) == (BAR2, "")
        assert not by_vfio.claimed, "the kernel would take the mapping away"
    assert by_vfio.claimed


def test_under_lockdown_the_window_is_mapped_through_vfio_and_has_no_file(
    system: FakeSystem, by_vfio: Vfio
) -> None:
    path = system.sys / "kernel/security"
    path.mkdir(parents=True)
    (path / "lockdown").write_text("none [integrity] confidentiality\n")
    with ExitStack() as stack:
        window = vfio.map_window(device(system), stack, by_vfio)
        assert window.mapping.view.nbytes == BAR2 // 2
        assert window.file is None
        assert "lockdown" in window.no_file
        assert "--bind kmod" in window.no_file


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL])
def test_window_that_sysfs_does_not_map_is_mapped_through_vfio(
    system: FakeSystem,
    monkeypatch: pytest.MonkeyPatch,
    by_vfio: Vfio,
    number: int,
) -> None:
    def refuse(path: Path, *, write: bool = False) -> int:
        raise OSError(number, os.strerror(number), str(path))

    here = device(system)
    monkeypatch.setattr(system, "open_attribute", refuse)
    with ExitStack() as stack:
        window = vfio.map_window(here, stack, by_vfio)
        assert window.mapping.view.nbytes == BAR2 // 2
        assert window.file is None
        assert os.strerror(number) in window.no_file


def test_agent_without_descriptors_does_not_give_the_window_up(
    system: FakeSystem, monkeypatch: pytest.MonkeyPatch, by_vfio: Vfio
) -> None:
    def refuse(path: Path, *, write: bool = False) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    here = device(system)
    monkeypatch.setattr(system, "open_attribute", refuse)
    with ExitStack() as stack, pytest.raises(OSError, match="Too many open files"):
        vfio.map_window(here, stack, by_vfio)
    assert not by_vfio.claimed


class Holds(FakeSystem):
    """A kernel whose helper notes what it is to hold."""

    def __init__(self, root: Path, *modules: str) -> None:
        super().__init__(root, *modules)
        self.held: list[tuple[str, int]] = []
        self.ended = False

    def hold(self, name: str, fd: int) -> None:
        if self.ended:
            raise Unusable("the helper process has ended")
        self.held.append((name, fd))

    def let_close(self, name: str) -> None:
        self.held = [one for one in self.held if one[0] != name]


def test_device_is_held_from_when_its_window_is_given_away(
    tmp_path: Path, by_vfio: Vfio
) -> None:
    system = Holds(tmp_path, "vfio-pci")
    pci = device(system)
    held = vfio.Held(pci, 7)
    with ExitStack() as undo:
        undo.callback(held.end)
        window = vfio.map_window(pci, undo, by_vfio, held)
        assert window.file is not None
        assert system.held == []
        window.file.give()
        window.file.give()
        assert system.held == [(pci.address, 7)]
    assert system.held == []


def test_device_that_cannot_be_held_is_served_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    system = Holds(tmp_path, "vfio-pci")
    system.ended = True
    held = vfio.Held(device(system), 7)
    held()
    assert "may read ones for a moment" in caplog.text
    held.end()


def test_group_that_a_killed_agents_helper_has_open_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = FakeSystem(tmp_path, "vfio-pci")
    pci, times = device(system), iter([errno.EBUSY, errno.EBUSY, 0])
    monkeypatch.setattr(vfio, "PAUSE", 0.0)

    def open_node(node: Path) -> int:
        if error := next(times):
            raise OSError(error, os.strerror(error))
        return os.open(os.devnull, os.O_RDWR)

    monkeypatch.setattr(system, "open", open_node)
    with ExitStack() as undo:
        assert vfio._open_group(pci, "1", undo) >= 0
    assert next(times, None) is None


def test_group_that_another_program_has_open_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = FakeSystem(tmp_path, "vfio-pci")
    monkeypatch.setattr(vfio, "GRACE", 0.0)
    monkeypatch.setattr(hold, "LINGER", 0.1)

    def refuse(node: Path) -> int:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(system, "open", refuse)
    with ExitStack() as undo, pytest.raises(OSError, match="busy"):
        vfio._open_group(device(system), "1", undo)
