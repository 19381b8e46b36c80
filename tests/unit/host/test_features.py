# SPDX-License-Identifier: Apache-2.0
"""The table of features: all that QEMU asks a back-end about, and as in the docs."""

import re
from pathlib import Path

from vhostpci_host.features import DECISIONS
from vhostpci_host.vhost_user import negotiation
from vhostpci_shared.virtio import Feature

DOCS = Path(__file__).parents[3] / "docs/interoperability.md"

# user_feature_bits of net/vhost-user.c in QEMU 7.2, and what 10 and 11 add.
QEMU_7 = """
    F_NOTIFY_ON_EMPTY F_INDIRECT_DESC F_EVENT_IDX F_ANY_LAYOUT F_VERSION_1 NET_F_CSUM
    NET_F_GUEST_CSUM NET_F_GSO NET_F_GUEST_TSO4 NET_F_GUEST_TSO6 NET_F_GUEST_ECN
    NET_F_GUEST_UFO NET_F_HOST_TSO4 NET_F_HOST_TSO6 NET_F_HOST_ECN NET_F_HOST_UFO
    NET_F_MRG_RXBUF NET_F_MTU F_ACCESS_PLATFORM F_RING_PACKED F_RING_RESET NET_F_RSS
    NET_F_HASH_REPORT NET_F_GUEST_ANNOUNCE NET_F_MQ
"""
SINCE = """
    F_NOTIFICATION_DATA F_IN_ORDER NET_F_RSC_EXT NET_F_GUEST_USO4 NET_F_GUEST_USO6
    NET_F_HOST_USO
"""


def named(names: str) -> list[Feature]:
    return [Feature[name] for name in names.split()]


def test_each_feature_that_qemu_leaves_to_a_back_end_is_decided_once() -> None:
    assert sorted(one.feature for one in DECISIONS) == sorted(named(QEMU_7 + SINCE))


def test_offer_is_what_the_table_says_and_no_more() -> None:
    offered = negotiation.offered(queue_pairs=2, confined=True)
    for one in DECISIONS:
        assert (one.feature in offered) == one.offered, one
    rest = offered & ~sum(one.feature for one in DECISIONS)
    assert rest == Feature.F_PROTOCOL_FEATURES


def test_offer_with_one_queue_pair_lacks_only_multiqueue() -> None:
    one, two = (negotiation.offered(queue_pairs=pairs) for pairs in (1, 2))
    assert one ^ two == Feature.NET_F_MQ


def test_access_platform_is_offered_to_a_confined_device_only() -> None:
    given = [negotiation.offered(1, confined=confined) for confined in (False, True)]
    assert given[0] ^ given[1] == Feature.F_ACCESS_PLATFORM
    assert Feature.F_ACCESS_PLATFORM in given[1]


def test_table_of_the_docs_is_that_of_the_code() -> None:
    section = DOCS.read_text().split("\n## Features\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (yes|no) \| (.*) \|$", section, re.MULTILINE)
    assert rows == [
        (one.feature.name, "yes" if one.offered else "no", one.why) for one in DECISIONS
    ]
