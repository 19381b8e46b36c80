# SPDX-License-Identifier: Apache-2.0
"""Window files and ties of uio_vhostpci, as a fake kernel has them."""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.sysfs import FakeSystem
from tests.unit.guest.pci.plugged import HERE
from vhostpci_guest.eventfds import new_eventfd
from vhostpci_guest.interfaces import Ties
from vhostpci_guest.pci import bindings, ivshmem, search
from vhostpci_guest.pci.ivshmem import PciBound
from vhostpci_guest.pci.sysfs_device import PciDevice

DRIVER = "uio_vhostpci"
TIE, UNTIE = 0x400CA701, 0x400CA702


class FakeKernel:
    """What the module does for its second node, in place of `fcntl.ioctl`."""

    def __init__(self, dev: Path) -> None:
        self.refusal: int | None = None
        self.window_files = 0
        """How many were opened: each one revokes the one before."""
        self.tied: dict[int, tuple[int, int]] = {}
        """Peer and vector, by the eventfd."""
        self._dev = dev

    def ioctl(self, fd: int, request: int, argument: int | bytes) -> int:
        """Do what a program asks for."""
        assert opened(fd) == str(self._dev / DRIVER)
        if self.refusal is not None:
            raise OSError(self.refusal, os.strerror(self.refusal))
        if isinstance(argument, int):
            assert request == 0xA700
            assert opened(argument) == str(self._dev / "uio0")
            self.window_files += 1
            return os.memfd_create("window")
        node, eventfd, vector, peer = struct.unpack("=iiHH", argument)
        assert opened(node) == str(self._dev / "uio0")
        if request == TIE:
            self.tied[eventfd] = (peer, vector)
        else:
            assert request == UNTIE
            del self.tied[eventfd]
        return 0


def opened(fd: int) -> str:
    """Return what a descriptor has open."""
    return os.readlink(f"/proc/self/fd/{fd}")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSystem:
    system = FakeSystem(tmp_path, DRIVER)
    monkeypatch.setattr(ivshmem, "_readable", system.readable)
    return system


@pytest.fixture
def kernel(system: FakeSystem, monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    kernel = FakeKernel(system.dev)
    monkeypatch.setattr(fcntl, "ioctl", kernel.ioctl)
    return kernel


@pytest.fixture
def here(system: FakeSystem) -> PciDevice:
    """A device, and a module that has the second node."""
    system.load_now(DRIVER)
    system.plug(HERE, driver=DRIVER)
    (system.dev / DRIVER).touch()
    return search.at(HERE, system)


@pytest.fixture
def bound(kernel: FakeKernel, here: PciDevice) -> Iterator[PciBound]:
    bound = bindings.bind(here, "kmod")
    yield bound
    bound.close()


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = new_eventfd()
    yield fd
    os.close(fd)


def ties_of(bound: PciBound) -> Ties:
    """Return what ties doorbells of a device."""
    ties = bound.doorbell(7, 1).ties
    assert ties is not None
    return ties


def test_window_has_a_file_that_is_closed_with_the_device(
    kernel: FakeKernel, here: PciDevice
) -> None:
    bound = bindings.bind(here, "kmod")
    file = bound.window.file
    assert file is not None
    assert "window" in opened(file.fd)
    assert file.offset == 0
    assert kernel.window_files == 1
    bound.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.fd)


def test_window_is_taken_back_when_the_device_is_closed(
    kernel: FakeKernel, here: PciDevice
) -> None:
    bindings.bind(here, "kmod").close()
    assert kernel.window_files == 2


def test_window_of_a_device_that_is_gone_need_not_be_taken_back(
    kernel: FakeKernel, here: PciDevice, caplog: pytest.LogCaptureFixture
) -> None:
    bound = bindings.bind(here, "kmod")
    kernel.refusal = errno.ENODEV
    caplog.clear()
    bound.close()
    assert caplog.text == ""


def test_window_that_cannot_be_taken_back_is_a_warning(
    kernel: FakeKernel, here: PciDevice, caplog: pytest.LogCaptureFixture
) -> None:
    bound = bindings.bind(here, "kmod")
    kernel.refusal = errno.EMFILE
    bound.close()
    assert "can't be claimed: [Errno 24] Too many open files" in caplog.text


def test_module_without_the_second_node_gives_no_file_and_no_tie(
    system: FakeSystem, here: PciDevice
) -> None:
    (system.dev / DRIVER).unlink()
    bound = bindings.bind(here, "kmod")
    assert bound.window.file is None
    assert "older than the agent" in bound.window.no_file
    assert "--bind vfio" in bound.window.no_file
    assert bound.doorbell(7, 1).ties is None
    bound.close()


def test_second_node_that_is_not_for_us_is_reported(
    system: FakeSystem, here: PciDevice
) -> None:
    (system.dev / DRIVER).unlink()
    (system.dev / DRIVER).mkdir()
    bound = bindings.bind(here, "kmod")
    assert bound.window.no_file.endswith("can't be opened: Is a directory")
    bound.close()


def test_window_file_that_the_kernel_refuses_is_reported(
    kernel: FakeKernel, here: PciDevice
) -> None:
    kernel.refusal = errno.EMFILE
    bound = bindings.bind(here, "kmod")
    assert bound.window.file is None
    assert bound.window.no_file.endswith("no window file: Too many open files")
    bound.close()


def test_tie_names_the_peer_and_its_vector(
    kernel: FakeKernel, bound: PciBound, eventfd: int
) -> None:
    tie = ties_of(bound).tie(eventfd, 7, 1)
    assert tie is not None
    assert list(kernel.tied.values()) == [(7, 1)]
    tie.close()
    tie.close()
    assert kernel.tied == {}


def test_tie_that_is_refused_is_a_warning(
    kernel: FakeKernel,
    bound: PciBound,
    eventfd: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kernel.refusal = errno.ENOSPC
    assert ties_of(bound).tie(eventfd, 7, 1) is None
    assert "doorbell of peer 7, vector 1: No space left on device" in caplog.text


def test_tie_of_a_device_that_is_gone_can_be_closed(
    kernel: FakeKernel, bound: PciBound, eventfd: int
) -> None:
    tie = ties_of(bound).tie(eventfd, 7, 1)
    kernel.refusal = errno.ENODEV
    assert tie is not None
    tie.close()
