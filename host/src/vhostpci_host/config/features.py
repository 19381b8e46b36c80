# SPDX-License-Identifier: Apache-2.0
"""The option `features`: what a device may offer its masters.

A master negotiates when its driver is loaded, and what moves its packets may come later
and serve less than we do.  The option says what that will serve: the name of a data
plane, the names of features, or both.
"""

import difflib

from vhostpci_shared.virtio import NO_DATA_PLANE, Feature

from ..errors import HostError
from ..features import OFFERED

ALWAYS = NO_DATA_PLANE | Feature.F_VERSION_1
"""Offered whatever the option and the agent say.

A QEMU does not start with a modern card (`disable-legacy=on`) whose back-end lacks
F_VERSION_1, so a slave must not be able to take it away.
"""

_PASST = Feature.F_VERSION_1 | Feature.NET_F_MRG_RXBUF
_VPP = _PASST | Feature.F_ANY_LAYOUT | Feature.F_INDIRECT_DESC | Feature.NET_F_MQ
_USO = Feature.NET_F_HOST_USO | Feature.NET_F_GUEST_USO4 | Feature.NET_F_GUEST_USO6

# Without checksum and segmentation offloads for those that only forward: they would
# hand packets without their checksum to whatever is next.
PROFILES = {
    "ring": OFFERED,
    # Of a kernel before 6.2, whose TAP does not know UDP segments.
    "vhost-net": OFFERED & ~(Feature.F_RING_PACKED | _USO),
    # Not packed: after the death of a back-end nothing says where such a ring stands.
    "dpdk": _VPP | Feature.F_EVENT_IDX | Feature.F_IN_ORDER,
    "vpp": _VPP,
    "passt": _PASST,
}
"""What each data plane serves, so that any version of it will do."""


def parse_features(text: str) -> Feature:
    """Return the features of a list of data planes and features, joined by commas.

    Raises:
        HostError: a word is neither, or we do not offer the feature.
    """
    found = ALWAYS
    for word in text.split(","):
        found |= _named(word.strip())
    return found & OFFERED


def _named(word: str) -> Feature:
    if word in PROFILES:
        return PROFILES[word]
    feature = Feature.__members__.get(word.upper())
    if feature is None:
        near = difflib.get_close_matches(word.upper(), Feature.__members__, n=1)
        hint = f"; do you mean {near[0]}?" if near else ""
        raise HostError(
            f"features {word!r}: write {', '.join(PROFILES)} or names of features such "
            f"as NET_F_MRG_RXBUF, joined by commas{hint}",
            code="H047",
        )
    if feature not in OFFERED:
        raise HostError(
            f"features {word!r}: we do not offer it "
            "(docs/interoperability.md, Features, says why)",
            code="H048",
        )
    return feature
