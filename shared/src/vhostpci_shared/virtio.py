# SPDX-License-Identifier: Apache-2.0
"""Virtio's feature bits, under the names of the VIRTIO specification."""

from enum import IntFlag

from .wire import ProtocolError

DESC_SIZE = 16
"""Bytes of one entry of a split ring's descriptor table."""
AVAIL_ENTRY = 2
USED_ENTRY = 8
RING_EXTRA = 6
"""Bytes of flags, idx and the event index around an avail or used ring."""
USED_IDX_OFFSET = 2
MAX_SPLIT_SIZE = 32768
"""Largest queue size (VIRTIO, "Split Virtqueues")."""


class Feature(IntFlag):
    """Feature bits of a network device, and those of every device from 24 on."""

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
    F_LOG_ALL = 1 << 26  # vhost's own, not virtio's
    F_ANY_LAYOUT = 1 << 27
    F_INDIRECT_DESC = 1 << 28
    F_EVENT_IDX = 1 << 29
    F_PROTOCOL_FEATURES = 1 << 30  # vhost-user's own, not virtio's
    F_VERSION_1 = 1 << 32
    F_ACCESS_PLATFORM = 1 << 33  # once IOMMU_PLATFORM
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


def names(flags: IntFlag) -> list[str]:
    """Name each bit of `flags`, lowest first; one without a name is "bit N"."""
    kind = type(flags)
    bits = (bit for bit in range(flags.bit_length()) if flags >> bit & 1)
    return [kind(1 << bit).name or f"bit {bit}" for bit in bits]


def check_split_size(num: int) -> int:
    """Return `num` if a split ring can have it as its size.

    Raises:
        ProtocolError: it is no power of two, or too large.
    """
    if not 0 < num <= MAX_SPLIT_SIZE or num & (num - 1):
        raise ProtocolError(
            f"ring size {num}, not a power of two from 1 to {MAX_SPLIT_SIZE}"
        )
    return num
