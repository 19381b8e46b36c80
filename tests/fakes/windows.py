# SPDX-License-Identifier: Apache-2.0
"""Fake windows (a `vhostpci_host.memory.Windows`) onto memory that a test can write."""

import os

from vhostpci_host.fds import Fd
from vhostpci_host.memory.regions import PlacedRegion
from vhostpci_shared.vhost_user import MemRegion
from vhostpci_shared.wire import ProtocolError

MIB = 1 << 20


class Ram:
    """A memfd that holds all the memory of the master, shown as window 0."""

    def __init__(self, size: int = 16 * MIB) -> None:
        self.size = size
        self.fd = os.memfd_create("ram")
        os.ftruncate(self.fd, size)

    def place(self, region: MemRegion, fd: Fd) -> PlacedRegion:
        ours, theirs = os.fstat(self.fd), os.fstat(fd.fileno())
        if (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino):
            raise ProtocolError("not the RAM")
        if region.size > self.size - region.mmap_offset:
            raise ProtocolError("past the end of the RAM")
        return PlacedRegion(region, window=0, offset=region.mmap_offset)

    def read(self, window: int, offset: int, size: int) -> bytes:
        return os.pread(self.fd, size, offset)

    def use(self, used: int, index: int) -> None:
        """Set the used index of the ring whose used ring is at this address."""
        os.pwrite(self.fd, index.to_bytes(2, "little"), used + 2)

    def close(self) -> None:
        os.close(self.fd)
