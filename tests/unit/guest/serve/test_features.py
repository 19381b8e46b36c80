# SPDX-License-Identifier: Apache-2.0
"""What acknowledged features mean for headers, packets and the TAP."""

import pytest

from vhostpci_guest.net_options import Offload
from vhostpci_guest.serve.features import options
from vhostpci_shared.virtio import Feature as F

CSUM, TSO4, TSO6 = F.NET_F_GUEST_CSUM, F.NET_F_GUEST_TSO4, F.NET_F_GUEST_TSO6


@pytest.mark.parametrize(
    ("features", "length"),
    [(0, 10), (F.NET_F_MRG_RXBUF, 12), (F.F_VERSION_1, 12), (F.F_EVENT_IDX, 10)],
)
def test_header_is_longer_with_num_buffers(features: int, length: int) -> None:
    assert options(features, 1500).hdr_len == length


@pytest.mark.parametrize(
    ("features", "offloads"),
    [
        (0, Offload(0)),
        (CSUM, Offload.CSUM),
        (CSUM | TSO4, Offload.CSUM | Offload.TSO4),
        (CSUM | TSO6, Offload.CSUM | Offload.TSO6),
        (TSO4 | TSO6, Offload(0)),
        (CSUM | F.NET_F_GUEST_ECN, Offload.CSUM),
        (
            CSUM | TSO4 | F.NET_F_GUEST_ECN,
            Offload.CSUM | Offload.TSO4 | Offload.TSO_ECN,
        ),
        (F.NET_F_CSUM | F.NET_F_HOST_TSO4, Offload(0)),
    ],
)
def test_tap_leaves_to_the_master_what_it_takes(
    features: int, offloads: Offload
) -> None:
    assert options(features, 1500).offloads == offloads


@pytest.mark.parametrize(
    ("features", "longest"),
    [(CSUM | TSO4, 65553), (CSUM | TSO6, 65553), (CSUM, 1518), (TSO4, 1518)],
)
def test_packets_are_longer_than_the_mtu_only_with_segmentation(
    features: int, longest: int
) -> None:
    assert options(features, 1500).max_packet == longest


@pytest.mark.parametrize(
    ("feature", "name"),
    [
        (F.NET_F_MRG_RXBUF, "mergeable"),
        (F.F_EVENT_IDX, "event_idx"),
        (F.F_INDIRECT_DESC, "indirect"),
    ],
)
def test_ring_option_follows_its_feature(feature: int, name: str) -> None:
    assert getattr(options(feature, 1500), name) is True
    assert getattr(options(0, 1500), name) is False
