# SPDX-License-Identifier: Apache-2.0
"""The virtio features that the back-end decides on: which it offers, and why.

QEMU gives the back-end those of the list `user_feature_bits` in net/vhost-user.c; here
are all of 7.2, 10 and 11.  What is not offered, no driver sees.  All other features
(MAC, STATUS, CTRL_VQ ...) are QEMU's.  docs/interoperability.md has the same table; a
test compares both.
"""

from dataclasses import dataclass
from functools import reduce
from operator import or_

from vhostpci_shared.virtio import Feature


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a feature is offered, and the reason."""

    feature: Feature
    offered: bool
    why: str


DECISIONS = (
    Decision(Feature.F_VERSION_1, True, "VIRTIO 1; legacy drivers do without"),
    Decision(Feature.F_ANY_LAYOUT, True, "a header may share a buffer with its packet"),
    Decision(Feature.F_INDIRECT_DESC, True, "a long packet takes one descriptor"),
    Decision(Feature.F_EVENT_IDX, True, "fewer kicks and calls"),
    Decision(Feature.F_IN_ORDER, True, "packets complete in order anyway"),
    Decision(
        Feature.F_NOTIFY_ON_EMPTY,
        False,
        "only legacy drivers without EVENT_IDX gain by it, and none of today's Linux",
    ),
    Decision(
        Feature.F_NOTIFICATION_DATA,
        False,
        "an eventfd carries no data, and the avail index is in the ring",
    ),
    Decision(
        Feature.F_ACCESS_PLATFORM,
        True,
        "to a confined device only: with it, the driver keeps to the shared region; a "
        "front-end that acknowledges it has an IOMMU, and is refused",
    ),
    Decision(
        Feature.F_RING_PACKED,
        True,
        "one ring in place of three areas; where it stands is kept in the metadata",
    ),
    Decision(
        Feature.F_RING_RESET,
        False,
        "QEMU tells a back-end of vhost-user nothing when a driver resets one ring "
        "(it does so for a TAP only), and the ring would be worked on meanwhile",
    ),
    Decision(
        Feature.NET_F_MRG_RXBUF,
        True,
        "without it, a Linux guest with GUEST_TSO posts some 17 pages a buffer",
    ),
    Decision(Feature.NET_F_MTU, True, "the front-end tells it, and the TAP follows"),
    Decision(Feature.NET_F_MQ, True, "where the device has several queue pairs"),
    Decision(Feature.NET_F_CSUM, True, "the slave's kernel computes it if need be"),
    Decision(Feature.NET_F_GUEST_CSUM, True, "the slave's kernel leaves it out"),
    Decision(Feature.NET_F_HOST_TSO4, True, "a segment of 64 KiB is one packet"),
    Decision(Feature.NET_F_HOST_TSO6, True, "the same"),
    Decision(Feature.NET_F_HOST_ECN, True, "the same, with ECN"),
    Decision(Feature.NET_F_GUEST_TSO4, True, "the same, to the master"),
    Decision(Feature.NET_F_GUEST_TSO6, True, "the same"),
    Decision(Feature.NET_F_GUEST_ECN, True, "the same, with ECN"),
    Decision(
        Feature.NET_F_HOST_USO,
        True,
        "64 KiB of UDP datagrams are one packet; where the slave's kernel is older "
        "than Linux 6.2, the agent makes datagrams of it",
    ),
    Decision(
        Feature.NET_F_GUEST_USO4,
        True,
        "the same, to the master; a kernel older than Linux 6.2 sends datagrams",
    ),
    Decision(Feature.NET_F_GUEST_USO6, True, "the same; a TAP has both or none"),
    Decision(
        Feature.NET_F_HOST_UFO,
        False,
        "Linux makes no such packets since 4.14; USO has taken its place",
    ),
    Decision(Feature.NET_F_GUEST_UFO, False, "the same"),
    Decision(
        Feature.NET_F_GSO, False, "legacy: it says TSO and UFO at once, see there"
    ),
    Decision(
        Feature.NET_F_GUEST_ANNOUNCE,
        False,
        "User Mode Linux gives its driver all that we offer and has no control queue, "
        "without which Linux refuses a card that has this; QEMU needs it after a "
        "migration, which we do not offer either",
    ),
    Decision(
        Feature.NET_F_RSS,
        False,
        "the driver sets it up through the control queue, which the back-end does not "
        "see",
    ),
    Decision(Feature.NET_F_HASH_REPORT, False, "the TAP gives no hash"),
    Decision(Feature.NET_F_RSC_EXT, False, "the TAP does not count what it coalesced"),
)


def union(features: list[Feature]) -> Feature:
    """Return all these features as one value."""
    return reduce(or_, features, Feature(0))


PAIRS_ONLY = Feature.NET_F_MQ
"""Offered only where the device has several queue pairs."""
CONFINED_ONLY = Feature.F_ACCESS_PLATFORM
"""Offered only where the device is confined, and then whatever its agent serves."""

# PROTOCOL_FEATURES is vhost-user's own, and no driver sees it.
OFFERED = (
    union([one.feature for one in DECISIONS if one.offered]) & ~CONFINED_ONLY
    | Feature.F_PROTOCOL_FEATURES
)
"""Offered to any device whose agent serves it."""
