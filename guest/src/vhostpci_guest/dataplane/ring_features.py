# SPDX-License-Identifier: Apache-2.0
"""The virtio features that our ring driver serves."""

from vhostpci_shared.virtio import Feature

SERVES = (
    Feature.F_VERSION_1
    | Feature.F_ANY_LAYOUT
    | Feature.F_INDIRECT_DESC
    | Feature.F_EVENT_IDX
    | Feature.F_IN_ORDER
    | Feature.F_RING_PACKED
    | Feature.NET_F_MRG_RXBUF
    | Feature.NET_F_MTU
    | Feature.NET_F_MQ
    | Feature.NET_F_CSUM
    | Feature.NET_F_GUEST_CSUM
    | Feature.NET_F_HOST_TSO4
    | Feature.NET_F_HOST_TSO6
    | Feature.NET_F_HOST_ECN
    | Feature.NET_F_GUEST_TSO4
    | Feature.NET_F_GUEST_TSO6
    | Feature.NET_F_GUEST_ECN
    | Feature.NET_F_HOST_USO
    | Feature.NET_F_GUEST_USO4
    | Feature.NET_F_GUEST_USO6
)
"""The features that the ring driver serves; what the TAP lacks it makes up for."""
