# SPDX-License-Identifier: Apache-2.0
"""What the virtio-net features that the master's driver acknowledged mean for us."""

from vhostpci_shared.virtio import Feature

from ..net_options import NetOptions, Offload

MAX_IP_PACKET = 65535
ETHERNET = 18  # header, and a VLAN tag


def options(features: int, mtu: int) -> NetOptions:
    """Return what `features` mean, on a TAP with `mtu`.

    The header has `num_buffers` with VERSION_1 always, before it only with
    MRG_RXBUF (VIRTIO, "Legacy Interface: Device Operation").
    """
    offloads = _offloads(features)
    large = offloads & (Offload.TSO4 | Offload.TSO6)
    return NetOptions(
        hdr_len=12
        if features & (Feature.F_VERSION_1 | Feature.NET_F_MRG_RXBUF)
        else 10,
        max_packet=(MAX_IP_PACKET if large else mtu) + ETHERNET,
        offloads=offloads,
        mergeable=bool(features & Feature.NET_F_MRG_RXBUF),
        event_idx=bool(features & Feature.F_EVENT_IDX),
        indirect=bool(features & Feature.F_INDIRECT_DESC),
    )


def _offloads(features: int) -> Offload:
    """Return what the master takes; segmentation needs checksum offload too."""
    if not features & Feature.NET_F_GUEST_CSUM:
        return Offload(0)
    offloads = Offload.CSUM
    if features & Feature.NET_F_GUEST_TSO4:
        offloads |= Offload.TSO4
    if features & Feature.NET_F_GUEST_TSO6:
        offloads |= Offload.TSO6
    if features & Feature.NET_F_GUEST_ECN and offloads & (Offload.TSO4 | Offload.TSO6):
        offloads |= Offload.TSO_ECN
    return offloads
