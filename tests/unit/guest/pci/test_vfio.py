# SPDX-License-Identifier: Apache-2.0
"""VFIO's numbers and structures, as linux/vfio.h has them."""

import struct

import pytest

from vhostpci_guest.pci import vfio


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
