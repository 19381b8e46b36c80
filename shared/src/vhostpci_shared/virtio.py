# SPDX-License-Identifier: Apache-2.0
"""VIRTIO's feature bits, and the sizes of a virtqueue's areas.

The names are those of the VIRTIO specification.
"""

from enum import IntFlag

from .wire import ProtocolError

# Bytes of one entry of the descriptor table, the avail ring and the used ring.
DESC_SIZE = 16
AVAIL_ENTRY = 2
USED_ENTRY = 8
# Bytes that an avail or used ring has beside its entries: flags and idx before them,
# and the event index after them.  VIRTIO counts the event index into the area even if
# F_EVENT_IDX was not negotiated.
RING_EXTRA = 6
# Bytes before the idx of the used ring, and of the avail ring: their flags.
USED_IDX_OFFSET = 2
AVAIL_IDX_OFFSET = 2
# Both count modulo this.
INDEXES = 1 << 16
# Bytes of a packed virtqueue's driver and device areas, which only say who wants to be
# signalled; its descriptors are as long as those of a split one.
PACKED_EVENT = 4
# The largest queue size (VIRTIO, "Split Virtqueues").  Indices have 16 bits and wrap at
# 65536; with at most half of that, "full" and "empty" are never the same difference.
MAX_SPLIT_SIZE = 32768


class Feature(IntFlag):
    """Feature bits of a network device.

    Bits 24 to 49 mean the same for every kind of device; the others are the network
    device's own ("Feature Bits").
    """

    # Direction: HOST_* lets the driver send such packets to the device, GUEST_* lets
    # the device give such packets to the driver.
    NET_F_CSUM = 1 << 0
    NET_F_GUEST_CSUM = 1 << 1
    NET_F_CTRL_GUEST_OFFLOADS = 1 << 2
    NET_F_MTU = 1 << 3
    NET_F_MAC = 1 << 5
    NET_F_GSO = 1 << 6
    NET_F_GUEST_TSO4 = 1 << 7
    NET_F_GUEST_TSO6 = 1 << 8
    NET_F_GUEST_ECN = 1 << 9
    NET_F_GUEST_UFO = 1 << 10
    NET_F_HOST_TSO4 = 1 << 11
    NET_F_HOST_TSO6 = 1 << 12
    NET_F_HOST_ECN = 1 << 13
    NET_F_HOST_UFO = 1 << 14
    NET_F_MRG_RXBUF = 1 << 15
    NET_F_STATUS = 1 << 16
    NET_F_CTRL_VQ = 1 << 17
    NET_F_CTRL_RX = 1 << 18
    NET_F_CTRL_VLAN = 1 << 19
    NET_F_CTRL_RX_EXTRA = 1 << 20
    NET_F_GUEST_ANNOUNCE = 1 << 21
    NET_F_MQ = 1 << 22
    NET_F_CTRL_MAC_ADDR = 1 << 23
    F_NOTIFY_ON_EMPTY = 1 << 24
    F_LOG_ALL = 1 << 26  # vhost's, not in VIRTIO: log writes to the master's memory
    F_ANY_LAYOUT = 1 << 27
    F_INDIRECT_DESC = 1 << 28
    F_EVENT_IDX = 1 << 29
    F_PROTOCOL_FEATURES = 1 << 30  # vhost-user's, not in VIRTIO: no driver sees it
    F_VERSION_1 = 1 << 32
    F_ACCESS_PLATFORM = 1 << 33  # QEMU's name for it is IOMMU_PLATFORM
    F_RING_PACKED = 1 << 34
    F_IN_ORDER = 1 << 35
    F_ORDER_PLATFORM = 1 << 36
    F_SR_IOV = 1 << 37
    F_NOTIFICATION_DATA = 1 << 38
    F_NOTIF_CONFIG_DATA = 1 << 39
    F_RING_RESET = 1 << 40
    NET_F_DEVICE_STATS = 1 << 50
    NET_F_VQ_NOTF_COAL = 1 << 52
    NET_F_NOTF_COAL = 1 << 53
    NET_F_GUEST_USO4 = 1 << 54
    NET_F_GUEST_USO6 = 1 << 55
    NET_F_HOST_USO = 1 << 56
    NET_F_HASH_REPORT = 1 << 57
    NET_F_GUEST_HDRLEN = 1 << 59
    NET_F_RSS = 1 << 60
    NET_F_RSC_EXT = 1 << 61
    NET_F_STANDBY = 1 << 62
    NET_F_SPEED_DUPLEX = 1 << 63


NO_DATA_PLANE = Feature.F_PROTOCOL_FEATURES | Feature.NET_F_MTU
"""What the daemon and the agent see to, whatever moves the packets."""


def lacking(features: int, offers: int) -> Feature:
    """Return which of `features` a data plane lacks that can serve `offers`."""
    return Feature(features & ~offers & ~NO_DATA_PLANE)


def names(flags: IntFlag) -> list[str]:
    """Name each bit of `flags`, lowest first; a bit without a name is "bit N"."""
    kind = type(flags)
    bits = (bit for bit in range(flags.bit_length()) if flags >> bit & 1)
    return [kind(1 << bit).name or f"bit {bit}" for bit in bits]


def check_split_size(num: int) -> int:
    """Return `num` if it can be the size of a split virtqueue.

    Raises:
        ProtocolError: it is not a power of two from 1 to 32768.
    """
    # A power of two, because an index that wraps at 2^16 is used modulo the size.
    if not 0 < num <= MAX_SPLIT_SIZE or num & (num - 1):
        raise ProtocolError(
            f"ring size {num}, not a power of two from 1 to {MAX_SPLIT_SIZE}",
            code="P024",
        )
    return num


def check_packed_size(num: int) -> int:
    """Return `num` if it can be the size of a packed virtqueue.

    Raises:
        ProtocolError: it is not from 1 to 32768.
    """
    if not 0 < num <= MAX_SPLIT_SIZE:
        raise ProtocolError(f"ring size {num}, not 1 to {MAX_SPLIT_SIZE}", code="P025")
    return num
