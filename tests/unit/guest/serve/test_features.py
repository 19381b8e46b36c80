# SPDX-License-Identifier: Apache-2.0
"""What acknowledged features mean for headers, packets and the TAP."""

import pytest

from vhostpci_guest.net_options import Offload
from vhostpci_guest.serve.features import options
from vhostpci_shared.virtio import Feature as F

CSUM, TSO4, TSO6 = F.NET_F_GUEST_CSUM, F.NET_F_GUEST_TSO4, F.NET_F_GUEST_TSO6
USO4, USO6 = F.NET_F_GUEST_USO4, F.NET_F_GUEST_USO6


@pytest.mark.parametrize(
    ("features", "length"),
    [(0, 10), (F.NET_F_MRG_RXBUF, 12), (F.F_VERSION_1, 12), (F.F_EVENT_IDX, 10)],
)
def test_header_is_longer_with_num_buffers(features: int, length: int) -> None:
    assert options(features).hdr_len == length


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
        (CSUM | USO4 | USO6, Offload.CSUM | Offload.USO),
        # The kernel refuses one of them alone.
        (CSUM | USO4, Offload.CSUM),
        (CSUM | USO6, Offload.CSUM),
        (USO4 | USO6, Offload(0)),
        (F.NET_F_CSUM | F.NET_F_HOST_USO, Offload(0)),
    ],
)
def test_tap_leaves_to_the_master_what_it_takes(
    features: int, offloads: Offload
) -> None:
    assert options(features).offloads == offloads


@pytest.mark.parametrize("features", [0, CSUM, CSUM | TSO4])
def test_master_gets_any_packet_that_the_tap_sends(features: int) -> None:
    """What is longer than the master's buffers is dropped there."""
    assert options(features).max_packet == 65535 + 14 + 2 * 4


@pytest.mark.parametrize(
    ("feature", "name"),
    [
        (F.NET_F_MRG_RXBUF, "mergeable"),
        (F.F_EVENT_IDX, "event_idx"),
        (F.F_INDIRECT_DESC, "indirect"),
        (F.F_IN_ORDER, "in_order"),
        (F.NET_F_HOST_USO, "udp_segments"),
    ],
)
def test_ring_option_follows_its_feature(feature: int, name: str) -> None:
    assert getattr(options(feature), name) is True
    assert getattr(options(0), name) is False
