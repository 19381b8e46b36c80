# SPDX-License-Identifier: Apache-2.0
"""A TAP as the ring driver has it: virtio-net headers of 12 bytes, not blocking."""

import fcntl
import os
import struct

TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
TUNSETCARRIER = 0x400454E2
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 1, 2, 4

HEADER = struct.Struct("<BBHHHHH")
"""struct virtio_net_hdr_v1 (VIRTIO, "Network Device", "Device Operation")."""


def open_tap(name: str, offloads: int = 0) -> int:
    """Make a TAP, in the namespace of this thread; return its queue, to be closed."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", HEADER.size))
        fcntl.ioctl(fd, TUNSETOFFLOAD, offloads)
    except BaseException:
        os.close(fd)
        raise
    return fd
