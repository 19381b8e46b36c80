# SPDX-License-Identifier: Apache-2.0
"""Turns the virtio-net features that the master's driver acknowledged into options."""

from vhostpci_shared.virtio import Feature

from ..net_options import NetOptions, Offload

MAX_IP_PACKET = 65535
ETHERNET = 22  # bytes of the header and of two VLAN tags (QinQ)


def options(features: int) -> NetOptions:
    """Return the packet options for a master with `features`."""
    # VIRTIO, "Legacy Interface: Device Operation": with VERSION_1 the header always has
    # `num_buffers`, and in the legacy interface only with MRG_RXBUF.
    return NetOptions(
        hdr_len=12
        if features & (Feature.F_VERSION_1 | Feature.NET_F_MRG_RXBUF)
        else 10,
        # No less, also without segmentation offload: the MTU of the TAP bounds what
        # the slave's kernel sends, the user may change that MTU at any time, and the
        # master's buffers say what the master takes.
        max_packet=MAX_IP_PACKET + ETHERNET,
        offloads=_offloads(features),
        udp_segments=bool(features & Feature.NET_F_HOST_USO),
        mergeable=bool(features & Feature.NET_F_MRG_RXBUF),
        event_idx=bool(features & Feature.F_EVENT_IDX),
        indirect=bool(features & Feature.F_INDIRECT_DESC),
        in_order=bool(features & Feature.F_IN_ORDER),
    )


def _offloads(features: int) -> Offload:
    """Return the offloads that the TAP may leave to the master."""
    # GUEST_ means what the master receives, which the TAP sends.  Without CSUM the TAP
    # refuses the others (EINVAL), and VIRTIO has them depend on it as well.
    if not features & Feature.NET_F_GUEST_CSUM:
        return Offload(0)
    offloads = Offload.CSUM
    if features & Feature.NET_F_GUEST_TSO4:
        offloads |= Offload.TSO4
    if features & Feature.NET_F_GUEST_TSO6:
        offloads |= Offload.TSO6
    # ECN alone means nothing: it is a property of the segments of TSO4 and TSO6.
    if features & Feature.NET_F_GUEST_ECN and offloads & (Offload.TSO4 | Offload.TSO6):
        offloads |= Offload.TSO_ECN
    # A TAP has both or none.  If the driver wants one, the slave's kernel segments.
    both = Feature.NET_F_GUEST_USO4 | Feature.NET_F_GUEST_USO6
    if features & both == both:
        offloads |= Offload.USO
    return offloads
