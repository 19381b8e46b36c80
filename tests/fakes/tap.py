# SPDX-License-Identifier: Apache-2.0
"""Open a TAP as the agent does: non-blocking, with 12-byte virtio-net headers."""

import fcntl
import os
import struct

TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
TUNSETSNDBUF = 0x400454D4
TUNSETCARRIER = 0x400454E2
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 1, 2, 4
TUN_F_USO = 0x60
"""USO4 and USO6, which Linux 6.2 and later know."""

HEADER = struct.Struct("<BBHHHHH")
"""struct virtio_net_hdr_v1 (VIRTIO, "Network Device", "Device Operation")."""


def open_tap(name: str, offloads: int = 0) -> int:
    """Make a TAP in the network namespace of this thread.

    The caller closes the descriptor that this returns, and the TAP goes with it."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        set_header_length(fd, HEADER.size)
        set_offloads(fd, offloads)
    except BaseException:
        os.close(fd)
        raise
    return fd


def set_header_length(fd: int, length: int) -> None:
    """Set the length of the virtio-net header of a TAP."""
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", length))


def set_offloads(fd: int, offloads: int) -> None:
    """Set what a TAP may leave to its reader."""
    fcntl.ioctl(fd, TUNSETOFFLOAD, offloads)
