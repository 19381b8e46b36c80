# SPDX-License-Identifier: Apache-2.0
"""The kernel's vhost-net: its ioctls (linux/vhost.h), and nothing that decides.

A `VhostNet` is one open /dev/vhost-net, which moves the packets of one queue pair
between the master's rings and a queue of a TAP, in a thread of the kernel.  The ring
addresses are those of our mapping: the thread uses the memory of this process.
"""

import fcntl
import os
import struct
from collections.abc import Sequence

from vhostpci_shared.virtio import Feature

from .interface import MemRegion, RingConf

_VHOST = 0xAF << 8


def _write(number: int, size: int) -> int:
    return 1 << 30 | size << 16 | _VHOST | number


def _read(number: int, size: int) -> int:
    return 2 << 30 | size << 16 | _VHOST | number


_u64 = struct.Struct("=Q")
_state = struct.Struct("=II")
"""struct vhost_vring_state: number of the ring in its pair, and a number."""
_file = struct.Struct("=Ii")
"""struct vhost_vring_file: number of the ring in its pair, and a descriptor."""
_addr = struct.Struct("=IIQQQQ")
"""struct vhost_vring_addr: ring, flags, descriptors, used, avail, log."""
_memory = struct.Struct("=II")
"""struct vhost_memory: number of regions, padding."""
_region = struct.Struct("=QQQQ")
"""struct vhost_memory_region: guest address, size, address here, padding."""

_GET_FEATURES = _read(0x00, _u64.size)
_SET_FEATURES = _write(0x00, _u64.size)
_SET_OWNER = _VHOST | 0x01
_SET_MEM_TABLE = _write(0x03, _memory.size)
_SET_VRING_NUM = _write(0x10, _state.size)
_SET_VRING_ADDR = _write(0x11, _addr.size)
_SET_VRING_BASE = _write(0x12, _state.size)
_GET_VRING_BASE = _read(0x12, _state.size) | _write(0x12, _state.size)
_SET_VRING_KICK = _write(0x20, _file.size)
_SET_VRING_CALL = _write(0x21, _file.size)
_SET_VRING_ERR = _write(0x22, _file.size)
_NET_SET_BACKEND = _write(0x30, _file.size)

RING_FEATURES = (
    Feature.F_VERSION_1
    | Feature.NET_F_MRG_RXBUF
    | Feature.F_EVENT_IDX
    | Feature.F_INDIRECT_DESC
    | Feature.F_IN_ORDER
    | Feature.F_NOTIFY_ON_EMPTY
)
"""Bits that say how a ring works, and so are vhost-net's to know.

Not ANY_LAYOUT: the same bit has vhost-net make the net header itself, and not the TAP.
"""


class VhostNet:
    """One open /dev/vhost-net, for one queue pair.

    Rings are 0, the receive ring, and 1, the transmit ring.

    Args:
        fd: of /dev/vhost-net, which is ours from now on.

    Raises:
        OSError: the kernel has no thread for it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        try:
            # Not by the process that has opened it: the kernel's thread uses the
            # memory of the process that says this.
            fcntl.ioctl(fd, _SET_OWNER)
            answer = bytearray(_u64.size)
            fcntl.ioctl(fd, _GET_FEATURES, answer)
        except BaseException:
            os.close(fd)
            raise
        self.features: int = _u64.unpack(answer)[0]
        """All features that this kernel's vhost-net knows."""
        self._acknowledged: int | None = None

    def set_memory(self, regions: Sequence[MemRegion]) -> None:
        """Replace the master's memory; no ring runs.

        Raises:
            OSError: E2BIG: more regions than the kernel takes.
        """
        table = bytearray(_memory.pack(len(regions), 0))
        for region in regions:
            table += _region.pack(region.guest_addr, region.size, region.host_addr, 0)
        fcntl.ioctl(self._fd, _SET_MEM_TABLE, table)

    def set_up(
        self, ring: int, conf: RingConf, addresses: tuple[int, int, int]
    ) -> None:
        """Say what a ring is that does not run.

        Args:
            ring: its number in the pair.
            conf: what it needs.
            addresses: where descriptors, avail ring and used ring are mapped.

        Raises:
            OSError: the kernel refuses it.
        """
        features = conf.features & RING_FEATURES & self.features
        if features != self._acknowledged:
            fcntl.ioctl(self._fd, _SET_FEATURES, _u64.pack(features))
            self._acknowledged = features
        desc, avail, used = addresses
        fcntl.ioctl(self._fd, _SET_VRING_NUM, _state.pack(ring, conf.size))
        fcntl.ioctl(self._fd, _SET_VRING_BASE, _state.pack(ring, conf.base))
        fcntl.ioctl(
            self._fd, _SET_VRING_ADDR, _addr.pack(ring, 0, desc, used, avail, 0)
        )

    def set_signals(
        self, ring: int, *, kick: int | None, call: int | None, error: int | None
    ) -> None:
        """Set a ring's eventfds; the kernel keeps them open until others are set.

        Raises:
            OSError: one of them is no eventfd.
        """
        for request, fd in (
            (_SET_VRING_ERR, error),
            (_SET_VRING_CALL, call),
            (_SET_VRING_KICK, kick),
        ):
            fcntl.ioctl(self._fd, request, _file.pack(ring, -1 if fd is None else fd))

    def run(self, ring: int, tap: int) -> None:
        """Have the kernel work a ring.

        Raises:
            OSError: the ring is not in memory that can be used, or `tap` is no TAP.
        """
        fcntl.ioctl(self._fd, _NET_SET_BACKEND, _file.pack(ring, tap))

    def halt(self, ring: int) -> None:
        """Have the kernel leave a ring alone; it has, once this returns."""
        fcntl.ioctl(self._fd, _NET_SET_BACKEND, _file.pack(ring, -1))

    def base(self, ring: int) -> int:
        """Return how many chains the kernel has taken of a ring: an avail index."""
        answer = bytearray(_state.pack(ring, 0))
        fcntl.ioctl(self._fd, _GET_VRING_BASE, answer)
        # The upper half is the used index, of a packed ring only.
        return int(_state.unpack(answer)[1]) & 0xFFFF

    def close(self) -> None:
        """Have the kernel leave both rings alone, and end its thread."""
        os.close(self._fd)
